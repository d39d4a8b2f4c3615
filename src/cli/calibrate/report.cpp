#include "cli/calibrate/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>
#include <tuple>

#include "report/frontier.h"
#include "report/line_chart.h"
#include "report/table.h"

namespace tidal {
namespace {

std::vector<FoundPlan> found_plans(const std::vector<CalibratedPlan>& plans) {
  std::vector<FoundPlan> found;
  for (const CalibratedPlan& plan : plans) found.push_back(plan.found);
  return found;
}

std::string with_error(const TextLoss& loss) {
  return loss.tokens > 0 ? fmt::format("{:.4f} ± {:.4f}", loss.mean(), loss.error()) : "";
}

std::string megabytes(int64_t bytes) { return fmt::format("{:.1f}", static_cast<double>(bytes) / 1e6); }

std::string percent(int64_t part, int64_t whole) {
  return fmt::format("{:.1f} %", 100 * static_cast<double>(part) / static_cast<double>(whole));
}

std::string per_second(double seconds) { return seconds > 0 ? fmt::format("{:.1f}", 1 / seconds) : ""; }

}  // namespace

void mark_frontier(std::vector<CalibratedPlan>& plans) {
  std::vector<CostLoss> points;
  for (const CalibratedPlan& plan : plans) points.push_back({static_cast<double>(plan.found.bytes), plan.found.kl});
  for (const size_t i : pareto_frontier(points)) plans[i].frontier = true;
}

std::vector<size_t> shown_plans(const CalibrationReport& report) {
  const std::vector<FoundPlan> found = found_plans(report.plans);
  std::set<size_t> shown;
  for (const size_t i : best_by_selects(found)) shown.insert(i);
  for (size_t i = 0; i < report.plans.size(); ++i) {
    const CalibratedPlan& plan = report.plans[i];
    if (plan.found.plan.kind == PlanKind::Sketch || plan.frontier || i == report.chosen) shown.insert(i);
  }
  std::vector<size_t> order(shown.begin(), shown.end());
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return std::tie(found[a].bytes, found[a].kl, a) < std::tie(found[b].bytes, found[b].kl, b);
  });
  return order;
}

std::string table(const CalibrationReport& report) {
  std::vector<std::vector<std::string>> lines = {{"kind", "plan", "", "KL", "on text", "on retrieval", "held-out text",
                                                  "MB per token", "of full", "expected tok/s"}};
  for (const size_t i : shown_plans(report)) {
    const CalibratedPlan& plan = report.plans[i];
    std::string mark = plan.frontier ? "frontier" : "";
    if (i == report.chosen) mark += mark.empty() ? "chosen" : ", chosen";
    lines.push_back({to_string(plan.found.plan.kind), format_candidate(plan.found.plan), mark, with_error(plan.all),
                     with_error(plan.text), with_error(plan.retrieval), with_error(plan.held_out),
                     megabytes(plan.found.bytes), percent(plan.found.bytes, report.full_bytes),
                     per_second(plan.seconds)});
  }
  lines.push_back(
      {"full", "", "", "0", "0", "0", "0", megabytes(report.full_bytes), "100 %", per_second(report.full_seconds)});
  return markdown_table(lines, 3);
}

std::string frontier_svg(const CalibrationReport& report) {
  FrontierChart chart;
  chart.title = fmt::format("{}: what plans read and lose", report.model);
  chart.description = fmt::format(
      "KL divergence from full attention against bytes read per token at {} positions, one point for every plan that "
      "was measured on all texts.",
      report.context);
  chart.cost.name = fmt::format("bytes read per token, {} positions", report.context);
  chart.loss.name = "KL divergence, nats";
  // All kinds, so that a colour and a shape mean the same in every picture.
  chart.kinds = {to_string(PlanKind::Tidal), to_string(PlanKind::Sketch)};
  for (size_t i = 0; i < report.plans.size(); ++i) {
    const FoundPlan& plan = report.plans[i].found;
    chart.points.push_back({.label = short_name(plan.plan),
                            .cost = static_cast<double>(plan.bytes),
                            .loss = plan.kl,
                            .chosen = i == report.chosen,
                            .kind = static_cast<size_t>(plan.plan.kind)});
  }
  return to_svg(chart);
}

std::string sweep_svg(const CalibrationReport& report) {
  const int64_t tokens = report.sweep.front().loss.tokens;
  LineChart chart;
  chart.title = fmt::format("{}: one reselect layer", report.model);
  chart.description = fmt::format(
      "KL divergence from full attention against the layer that selects again, over the same {} tokens of {} for all; "
      "bars are standard errors.",
      tokens, report.text);
  chart.x = {"reselect layer", Scale::Span, Unit::Number};
  chart.y = {fmt::format("KL divergence, nats, {} tokens", tokens), Scale::Linear, Unit::Number};
  std::map<int, LineSeries> series;
  for (const RankedPlan& ranked : report.sweep) {
    LineSeries& line = series[ranked.plan.select.front()];
    line.name = fmt::format("first Select {}", ranked.plan.select.front());
    line.points.push_back({static_cast<double>(ranked.plan.select.back()), ranked.loss.mean(), ranked.loss.error()});
  }
  for (auto& [first, line] : series) {
    std::sort(line.points.begin(), line.points.end(), [](const LinePoint& a, const LinePoint& b) { return a.x < b.x; });
    chart.series.push_back(std::move(line));
  }
  return to_svg(chart);
}

std::string reuse_table(const CalibrationReport& report) {
  const double base = report.reuse_base.loss.mean();
  std::vector<RankedPlan> order = report.reuse;
  std::stable_sort(order.begin(), order.end(),
                   [](const RankedPlan& a, const RankedPlan& b) { return a.loss.mean() < b.loss.mean(); });
  std::vector<std::vector<std::string>> lines = {
      {fmt::format("layer that reuses a selection ({})", format_candidate(report.reuse_base.plan)), "KL", "more"}};
  lines.push_back({"none", with_error(report.reuse_base.loss), ""});
  for (const RankedPlan& ranked : order) {
    lines.push_back({std::to_string(ranked.plan.sparse.front()), with_error(ranked.loss),
                     fmt::format("{:+.4f}", ranked.loss.mean() - base)});
  }
  return markdown_table(lines, 1);
}

std::string reuse_svg(const CalibrationReport& report) {
  const TextLoss& base = report.reuse_base.loss;
  LineChart chart;
  chart.title = fmt::format("{}: one layer that reuses the selection before it", report.model);
  chart.description = fmt::format(
      "KL divergence from full attention against the layer that does not scan, {}, over the same {} tokens of {} for "
      "all; bars are standard errors.",
      format_candidate(report.reuse_base.plan), base.tokens, report.text);
  chart.x = {"layer that reuses a selection", Scale::Span, Unit::Number};
  chart.y = {fmt::format("KL divergence, nats, {} tokens", base.tokens), Scale::Linear, Unit::Number};
  LineSeries single{.name = "this layer reuses", .points = {}}, none{.name = "all scan", .points = {}};
  for (const RankedPlan& ranked : report.reuse) {
    const double layer = ranked.plan.sparse.front();
    single.points.push_back({layer, ranked.loss.mean(), ranked.loss.error()});
    none.points.push_back({layer, base.mean()});
  }
  chart.series = {std::move(single), std::move(none)};
  return to_svg(chart);
}

}  // namespace tidal
