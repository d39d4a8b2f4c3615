#include "cli/eval/needle_grid.h"

#include <algorithm>
#include <charconv>

#include "cli/bench/options.h"
#include "cli/eval/commands.h"
#include "core/error.h"
#include "eval/next_token.h"
#include "report/heat_map.h"
#include "report/table.h"

namespace tidal {
namespace {

using Json = ResultFile::Json;

double percent_from(std::string_view text) {
  std::string_view number = text;
  if (number.ends_with('%')) number.remove_suffix(1);
  double percent = 0;
  const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), percent);
  if (error != std::errc() || end != number.data() + number.size() || !(percent >= 0 && percent <= 100)) {
    fail("--depths: '{}' given, expected 0 to 100 (percent of the text)", text);
  }
  return percent / 100;
}

std::vector<double> depths_from(const std::string& text) {
  std::vector<double> depths;
  if (text.find_first_of(",%") == std::string::npos) {
    const int count = number_list("--depths", text, 1)[0];
    for (int i = 0; i < count; ++i) depths.push_back((i + 0.5) / count);
    return depths;
  }
  for (size_t at = 0; at <= text.size();) {
    const size_t comma = std::min(text.find(',', at), text.size());
    depths.push_back(percent_from(std::string_view(text).substr(at, comma - at)));
    at = comma + 1;
  }
  std::sort(depths.begin(), depths.end());
  depths.erase(std::unique(depths.begin(), depths.end()), depths.end());
  return depths;
}

/// Prompts of a cell in which the key was found.
int found(const EvalSession& session, const NeedleGrid& grid, int length, double depth, const NeedleCase& which) {
  int count = 0;
  for (int key = 0; key < grid.keys; ++key) {
    count += session.find(needle_key(length, depth, key, which))->at("found").get<bool>();
  }
  return count;
}

std::string case_name(const NeedleCase& which) {
  return fmt::format("{}; question {}", which.plan->name, to_string(which.question));
}

}  // namespace

NeedleGrid needle_grid(const std::string& lengths, const std::string& depths, const std::string& question, int keys) {
  need_at_least("--keys", keys, 1);
  NeedleGrid grid{number_list("--lengths", lengths, 1), depths_from(depths), {}, keys};
  if (question == "sparse" || question == "both") grid.questions.push_back(QuestionAs::Sparse);
  if (question == "dense" || question == "both") grid.questions.push_back(QuestionAs::Dense);
  if (grid.questions.empty()) fail("--question: '{}' is not known, expected sparse, dense or both", question);
  return grid;
}

Json needle_prompt_key(int length, double depth, int key) {
  return {{"length", length}, {"depth", depth}, {"key", key}};
}

Json needle_case_key(const NeedleCase& which) {
  return {{"plan", which.plan->name}, {"question", to_string(which.question)}};
}

Json needle_key(int length, double depth, int key, const NeedleCase& which) {
  Json row = needle_prompt_key(length, depth, key);
  row.update(needle_case_key(which));
  return row;
}

std::string needle_table(const EvalSession& session, const NeedleGrid& grid) {
  std::vector<std::vector<std::string>> lines = {{"plan", "question", "length", "found", "share", "std. error"}};
  const auto prompts = static_cast<int>(grid.depths.size()) * grid.keys;
  for (const int length : grid.lengths) {
    for (const EvalPlan& plan : session.plans()) {
      for (const QuestionAs question : grid.questions) {
        int count = 0;
        for (const double depth : grid.depths) count += found(session, grid, length, depth, {&plan, question});
        const double share = static_cast<double>(count) / prompts;
        lines.push_back({plan.name, to_string(question), std::to_string(length),
                         fmt::format("{} of {}", count, prompts), fmt::format("{:.1f} %", 100 * share),
                         fmt::format("{:.1f} %", 100 * share_error(share, prompts))});
      }
    }
  }
  return markdown_table(lines, 2);
}

std::string needle_svg(const EvalSession& session, const NeedleGrid& grid, const std::string& kind) {
  HeatMapChart chart;
  chart.title = fmt::format("{} found: {}", kind == "passkey" ? "Pass keys" : "Sentences", session.model_name());
  chart.description = fmt::format("Share of {} prompts in every cell whose answer began with the key", grid.keys);
  chart.row_axis = "depth of the needle";
  chart.column_axis = "tokens of the prompt";
  chart.value_name = "found (%)";
  chart.unit = Unit::Percent;
  chart.decimals = 0;
  chart.low = 0;
  chart.high = 1;
  for (const double depth : grid.depths) chart.rows.push_back(fmt::format("{:.4g} %", 100 * depth));
  for (const int length : grid.lengths) chart.columns.push_back(format_value(length, Unit::Count));
  for (const EvalPlan& plan : session.plans()) {
    for (const QuestionAs question : grid.questions) {
      HeatMap& map = chart.maps.emplace_back();
      map.title = case_name({&plan, question});
      for (const double depth : grid.depths) {
        for (const int length : grid.lengths) {
          map.values.emplace_back(static_cast<double>(found(session, grid, length, depth, {&plan, question})) /
                                  grid.keys);
        }
      }
    }
  }
  constexpr size_t kBeside = 4;
  chart.stacked = chart.maps.size() > kBeside;
  return to_svg(chart);
}

}  // namespace tidal
