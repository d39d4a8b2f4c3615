#include "cli/bench/row.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "report/table.h"

namespace tidal {
namespace {

using Json = nlohmann::ordered_json;

// Four significant digits and more are noise, but a reader may divide the columns by each other.
double rounded(double value) { return std::round(value * 1e4) / 1e4; }

Json to_json(const BenchRow& row, bool details) {
  const auto number = [](std::optional<double> value) { return value ? Json(rounded(*value)) : Json(nullptr); };
  Json json = {{"engine", row.engine},
               {"attention", row.attention},
               {"test", row.test},
               {"depth", row.depth},
               {"batch", row.batch},
               {"tokens_per_second", rounded(row.tokens_per_second)},
               {"ms_per_token", rounded(row.ms_per_token)},
               {"ms_min", rounded(row.ms_min)},
               {"gb_per_s", number(row.gb_per_s)},
               {"limit_share", number(row.limit_share)},
               {"accepted_drafts", number(row.accepted_drafts)},
               {"accepted_copies", number(row.accepted_copies)}};
  if (details) {
    json.update(Json{{"machine", row.machine},
                     {"threads", row.threads},
                     {"model", row.model},
                     {"budget", row.budget ? Json(*row.budget) : Json(nullptr)},
                     {"correct", row.correct ? Json(*row.correct) : Json(nullptr)},
                     {"kv_type", row.kv_type},
                     {"fill", row.fill},
                     {"repetitions", row.repetitions}});
  }
  return json;
}

// Names of files are UTF-8 by then; whatever else is not must not end a run.
std::string text_of(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

std::string csv_field(const Json& value) {
  if (value.is_null()) return "";
  if (!value.is_string()) return text_of(value);
  auto text = value.get<std::string>();
  if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
  std::string quoted = "\"";
  for (const char c : text) quoted += c == '"' ? std::string("\"\"") : std::string(1, c);
  return quoted + '"';
}

std::string csv_line(const Json& row, bool names) {
  std::string line;
  for (const auto& [name, value] : row.items()) {
    if (!line.empty()) line += ',';
    line += names ? name : csv_field(value);
  }
  return line + "\n";
}

// Tokens per second of llama.cpp in the same test; 0 when it was not measured.
double baseline(const std::vector<BenchRow>& rows, const BenchRow& like) {
  for (const BenchRow& row : rows) {
    if (row.engine != "tidal" && row.test == like.test && row.depth == like.depth && row.batch == like.batch) {
      return row.tokens_per_second;
    }
  }
  return 0;
}

std::string cell(std::optional<double> value, int digits, const char* unit = "") {
  return value ? fmt::format("{:.{}f}{}", *value, digits, unit) : "-";
}

std::string attention(const BenchRow& row) {
  std::string text = row.attention;
  if (row.budget) text += fmt::format(" K={}", *row.budget);
  if (row.correct) text += fmt::format(" T={}", *row.correct);
  return text;
}

std::string percent(std::optional<double> share) { return share ? cell(*share * 100, 0, " %") : "-"; }

std::vector<std::string> cells(const std::vector<BenchRow>& rows, const BenchRow& row, bool exact, bool ratio) {
  std::vector<std::string> out = {row.engine,
                                  attention(row),
                                  row.test,
                                  fmt::format("{}", row.depth),
                                  fmt::format("{}", row.batch),
                                  row.kv_type,
                                  cell(row.tokens_per_second, 2),
                                  cell(row.ms_per_token, 2),
                                  cell(row.ms_min, 2),
                                  cell(row.gb_per_s, 1),
                                  percent(row.limit_share)};
  if (exact) out.insert(out.end(), {percent(row.accepted_drafts), percent(row.accepted_copies)});
  if (ratio) {
    const double other = baseline(rows, row);
    out.push_back(other > 0 ? cell(row.tokens_per_second / other, 2, "x") : "-");
  }
  return out;
}

}  // namespace

BenchFormat bench_format_from(const std::string& word) {
  if (word == "md") return BenchFormat::Markdown;
  if (word == "json") return BenchFormat::Json;
  if (word == "csv") return BenchFormat::Csv;
  if (word == "jsonl") return BenchFormat::JsonLines;
  fail("output format: '{}' is not known, use md, json, csv or jsonl", word);
}

std::string markdown_table(const std::vector<BenchRow>& rows) {
  const bool ratio = std::any_of(rows.begin(), rows.end(), [](const BenchRow& row) { return row.engine != "tidal"; });
  const bool exact =
      std::any_of(rows.begin(), rows.end(), [](const BenchRow& row) { return row.attention.starts_with("exact"); });
  constexpr size_t kWords = 3;  // columns on the left that are aligned left
  std::vector<std::vector<std::string>> table = {
      {"engine", "attention", "test", "depth", "batch", "KV", "tok/s", "ms/token", "ms min", "GB/s", "of limit"}};
  if (exact) table[0].insert(table[0].end(), {"drafts held", "copies held"});
  if (ratio) table[0].push_back("vs llama.cpp");
  for (const BenchRow& row : rows) table.push_back(cells(rows, row, exact, ratio));
  return markdown_table(table, kWords);
}

void BenchWriter::add(const BenchRow& row) {
  const Json json = to_json(row, details_);
  switch (format_) {
    case BenchFormat::Markdown: break;
    case BenchFormat::Json: write((rows_.empty() ? "[\n  " : ",\n  ") + text_of(json)); break;
    case BenchFormat::Csv: write((rows_.empty() ? csv_line(json, true) : "") + csv_line(json, false)); break;
    case BenchFormat::JsonLines: write(text_of(json) + "\n"); break;
  }
  rows_.push_back(row);
}

void BenchWriter::finish(const std::vector<std::string>& notes) {
  if (format_ == BenchFormat::Json) write(rows_.empty() ? "[]\n" : "\n]\n");
  if (format_ != BenchFormat::Markdown) return;
  std::string text = markdown_table(rows_) + "\n";
  for (const std::string& note : notes) text += note + "\n";
  write(text);
}

void BenchWriter::write(const std::string& text) {
  // Flushed row by row: a run of an hour should leave what it has measured when it is stopped.
  if (std::fwrite(text.data(), 1, text.size(), out_) != text.size() || std::fflush(out_) != 0) {
    fail("output: cannot write the results: {}", std::strerror(errno));
  }
}

}  // namespace tidal
