#include "report/inspect_page.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <string_view>

#include "core/error.h"
#include "report/filled_page.h"
#include "report/inspect_template.h"

namespace tidal {
namespace {

using OrderedJson = nlohmann::ordered_json;

constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

bool continues_character(char byte) { return (static_cast<uint8_t>(byte) & 0xC0) == 0x80; }

/// Bytes that the UTF-8 character with this first byte has; 1 for bytes that begin none.
size_t character_bytes(char first) {
  const auto byte = static_cast<uint8_t>(first);
  return byte >= 0xF0 ? 4 : byte >= 0xE0 ? 3 : byte >= 0xC0 ? 2 : 1;
}

bool ends_inside_character(std::string_view text) {
  size_t tail = 1;
  while (tail < 4 && tail < text.size() && continues_character(text[text.size() - tail])) ++tail;
  return !text.empty() && character_bytes(text[text.size() - tail]) > tail;
}

/// The gaps between ascending positions, 5 bits a digit, lowest first; a digit of 32 or more says that another follows.
std::string encode_positions(const std::vector<int32_t>& positions) {
  std::string text;
  int32_t expected = 0;
  for (const int32_t position : positions) {
    auto gap = static_cast<uint32_t>(position - expected);
    for (; gap >= 32; gap >>= 5) text += kDigits[32 + (gap & 31)];
    text += kDigits[gap];
    expected = position + 1;
  }
  return text;
}

/// Two digits for every share: 0 to 4095 for 0 to 1. NaN counts as 0.
std::string encode_shares(const std::vector<float>& shares) {
  std::string text;
  text.reserve(2 * shares.size());
  for (const float share : shares) {
    const auto scaled = share > 0 ? static_cast<size_t>(std::lround(std::min(share, 1.0f) * 4095)) : 0;
    text += {kDigits[scaled >> 6], kDigits[scaled & 63]};
  }
  return text;
}

void check_step(const InspectReport& report, size_t index, size_t select_layers) {
  const InspectStep& step = report.steps[index];
  if (step.mass.size() != report.roles.size() * static_cast<size_t>(report.heads)) {
    fail("inspect page: step {} has {} shares of mass, expected {} heads in {} layers", index, step.mass.size(),
         report.heads, report.roles.size());
  }
  if (step.selected.size() != select_layers) {
    fail("inspect page: step {} has selections of {} layers, expected {}", index, step.selected.size(), select_layers);
  }
  const int64_t context = report.first_step + static_cast<int64_t>(index) + 1;
  for (const auto& sets : step.selected) {
    if (sets.size() != static_cast<size_t>(report.units)) {
      fail("inspect page: step {} has {} sets of a layer, expected {}", index, sets.size(), report.units);
    }
    for (const auto& set : sets) {
      int64_t before = -1;
      for (const int32_t position : set) {
        if (position <= before || position >= context) {
          fail("inspect page: step {} selects position {} after {}, expected ascending ones below {}", index, position,
               before, context);
        }
        before = position;
      }
    }
  }
}

void check_report(const InspectReport& report) {
  const auto positions = static_cast<int64_t>(report.pieces.size());
  if (report.document < 0 || report.question < 0 || int64_t{report.document} + report.question > positions) {
    fail("inspect page: a document of {} and a question of {} are more than its {} pieces", report.document,
         report.question, positions);
  }
  if (report.first_step < 0 || report.first_step + static_cast<int64_t>(report.steps.size()) > positions) {
    fail("inspect page: {} steps from position {} on are more than its {} pieces", report.steps.size(),
         report.first_step, positions);
  }
  const auto select_layers = std::count_if(report.roles.begin(), report.roles.end(),
                                           [](const std::string& role) { return role == "Select" || role == "Scan"; });
  for (size_t i = 0; i < report.steps.size(); ++i) check_step(report, i, static_cast<size_t>(select_layers));
}

OrderedJson text_of(const InspectReport& report) {
  // Two characters never share a span across the borders of document, question and answer.
  const std::span<const std::string> pieces = report.pieces;
  OrderedJson texts = OrderedJson::array(), wide = OrderedJson::array();
  const auto add = [&](std::span<const std::string> part) {
    for (TextSpan& span : whole_characters(part)) {
      if (span.pieces > 1) wide.push_back({texts.size(), span.pieces});
      texts.push_back(std::move(span.text));
    }
  };
  const auto document = static_cast<size_t>(report.document), question = static_cast<size_t>(report.question);
  add(pieces.first(document));
  add(pieces.subspan(document, question));
  add(pieces.subspan(document + question));
  return {{"texts", std::move(texts)}, {"wide", std::move(wide)}};
}

OrderedJson steps_of(const InspectReport& report) {
  OrderedJson steps = OrderedJson::array();
  for (const InspectStep& step : report.steps) {
    OrderedJson sets = OrderedJson::array();
    for (const auto& layer : step.selected) {
      OrderedJson units = OrderedJson::array();
      for (const auto& set : layer) units.push_back(encode_positions(set));
      sets.push_back(std::move(units));
    }
    // Three decimals are what a page shows.
    const double probability = std::isfinite(step.probability) ? std::round(step.probability * 1000) / 1000 : 0;
    steps.push_back({{"p", probability}, {"mass", encode_shares(step.mass)}, {"sets", std::move(sets)}});
  }
  return steps;
}

std::string data_of(const InspectReport& report) {
  OrderedJson data = {{"model", report.model},       {"facts", report.facts},      {"document", report.document},
                      {"question", report.question}, {"first", report.first_step}, {"end", report.end},
                      {"roles", report.roles},       {"heads", report.heads},      {"unit", report.unit},
                      {"units", report.units},       {"sinks", report.sinks},      {"recent", report.recent},
                      {"text", text_of(report)},     {"steps", steps_of(report)}};
  if (report.exact) {
    const InspectAcceptance& exact = *report.exact;
    data["exact"] = {{"tried", exact.tried},
                     {"accepted", exact.accepted},
                     {"rounds", exact.rounds},
                     {"answer", exact.answer},
                     {"same", exact.same}};
  }
  const std::string json = data.dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
  // Without '<' nothing in it can end the script element or begin a comment.
  std::string safe;
  safe.reserve(json.size());
  for (const char c : json) c == '<' ? safe += "\\u003c" : safe += c;
  return safe;
}

std::string html_escaped(const std::string& text) {
  // JSON's writer replaces bytes that are not UTF-8; its quotes are taken off again.
  const std::string quoted = OrderedJson(text).dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
  const std::string clean = OrderedJson::parse(quoted).get<std::string>();
  std::string escaped;
  for (const char c : clean) {
    if (c == '&') {
      escaped += "&amp;";
    } else if (c == '<') {
      escaped += "&lt;";
    } else {
      escaped += c;
    }
  }
  return escaped;
}

}  // namespace

std::vector<TextSpan> whole_characters(std::span<const std::string> pieces) {
  std::vector<TextSpan> spans;
  for (const std::string& piece : pieces) {
    const bool goes_on =
        !spans.empty() && !piece.empty() && continues_character(piece[0]) && ends_inside_character(spans.back().text);
    if (goes_on) {
      spans.back().text += piece;
      ++spans.back().pieces;
    } else {
      spans.push_back({piece, 1});
    }
  }
  return spans;
}

std::string inspect_page(const InspectReport& report) {
  check_report(report);
  const std::string title = html_escaped(report.model), data = data_of(report);
  const std::pair<std::string_view, std::string_view> values[] = {
      {"@title@", title}, {"@style@", kInspectStyle}, {"@data@", data}, {"@script@", kInspectScript}};
  return filled_page(kInspectHtml, values);
}

}  // namespace tidal
