#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <memory>
#include <optional>

#include "cli/calibrate/flags.h"
#include "cli/calibrate/report.h"
#include "cli/calibrate/rows.h"
#include "cli/commands.h"
#include "cli/console/interrupt.h"
#include "cli/console/output.h"
#include "cli/console/terminal.h"
#include "cli/console/text_file.h"
#include "cli/options/thread_count.h"
#include "core/error.h"
#include "core/timer.h"
#include "core/utf8.h"
#include "core/whole_file.h"
#include "eval/calibration_losses.h"
#include "eval/calibration_texts.h"
#include "eval/plan_search.h"
#include "eval/sketch_search.h"
#include "report/progress.h"

namespace tidal {
namespace {

std::string default_text(const std::string& model) {
  const std::filesystem::path beside = std::filesystem::path(model).parent_path() / "kjv.txt";
  for (const std::filesystem::path& path : {beside, std::filesystem::path("models/kjv.txt")}) {
    std::error_code ignored;
    if (std::filesystem::exists(path, ignored)) return path.string();
  }
  fail("calibrate: {} is missing, give a text with -f (or let tools/kjv.sh write the default one)", beside.string());
}

/// PLAN.json with another ending.
std::string beside(const std::string& plan, const char* ending) {
  const std::string json = ".json";
  return (plan.ends_with(json) ? plan.substr(0, plan.size() - json.size()) : plan) + ending;
}

/// One run of the command.
class Calibrate {
 public:
  explicit Calibrate(const CalibrateFlags& flags);
  void run();

 private:
  SearchOptions search_options() const;
  SketchSearchOptions sketch_search_options() const;
  std::vector<TextLoss> measure(std::span<const Candidate> plans, int text);
  bool advance(int64_t units);
  int64_t expected_work() const;
  void summarise();
  void summarise_sweeps();
  /// Whether plans of this kind are looked for: where the flags say so and enough layers read the whole context.
  bool wants(PlanKind kind) const {
    return flags_.wants(kind) && (kind == PlanKind::Sketch || has_tidal_plans(model_.hp));
  }
  /// Plans of this kind: a step's time from full attention's and that of its first plan.
  void expect_seconds(PlanKind kind);
  /// Whether a sketch plan is so much better than this tidal one that further Select layers cannot make up for it.
  bool out_of_reach(const RankedPlan& best) const;
  double timed(const std::string& what, const Plan& plan);
  void finish();
  std::string about(const CalibratedPlan& plan) const;
  TextLoss loss_of_kind(const Candidate& plan, bool retrieval) const;

  const CalibrateFlags& flags_;
  const Interrupt interrupt_;
  const StatusLine status_;
  std::unique_ptr<Backend> backend_;
  const KvPlace kv_place_;
  Model model_;
  const std::string text_path_, plan_path_;
  const CandidatePolicies policies_;
  const int layers_;  // that read the whole context: candidates count among these
  CalibrationTexts texts_;
  WholeFile plan_file_, frontier_file_, sweep_file_, reuse_file_;
  std::unique_ptr<CalibrationRows> rows_;
  std::unique_ptr<CalibrationLosses> losses_;
  LossTable table_;
  std::vector<std::vector<RankedPlan>> found_;  // tidal plans
  SketchPlans sketches_;
  CalibrationReport report_;
  // Of the progress line: decoded steps of plans; two prefilled tokens count as one.
  Timer timer_;
  int64_t total_ = 0, earlier_ = 0, done_ = 0, half_ = 0;
};

Calibrate::Calibrate(const CalibrateFlags& flags)
    : flags_(flags),
      backend_(open_backend(flags.backend, thread_count(flags.threads), flags.model)),
      kv_place_(kv_place(flags.kv, *backend_)),
      model_(load_model(flags.model, *backend_)),
      text_path_(flags.text.empty() ? default_text(flags.model) : flags.text),
      plan_path_(flags.output.empty() ? calibrated_plan_file(flags.model) : flags.output),
      policies_(candidate_policies(flags, model_.hp)),
      layers_(static_cast<int>(model_.hp.layers_that_read_all().size())),
      plan_file_(plan_path_),
      frontier_file_(beside(plan_path_, ".frontier.svg")),
      sweep_file_(beside(plan_path_, ".sweep.svg")),
      reuse_file_(beside(plan_path_, ".reuse.svg")),
      table_([this](std::span<const Candidate> plans, int text) { return measure(plans, text); }) {
  const Hyperparameters& hp = model_.hp;
  if (!wants(PlanKind::Tidal) && !wants(PlanKind::Sketch)) {
    fail("--kinds: of {} layers {} read the whole context, too few for tidal plans", hp.layers, layers_);
  }
  const int most = layers_ - 2;
  if (flags.wanted.selects && *flags.wanted.selects > most) {
    fail("--selects: {} given, at most {} fit behind the first one in a model of {} layers{}", *flags.wanted.selects,
         most, layers_, layers_ < hp.layers ? " that read the whole context" : "");
  }
  status_.show("reading the text");
  const std::string text = read_text_file(text_path_);
  const Tokenizer tokenizer = open_tokenizer(flags.model);
  texts_ = calibration_texts(tokenizer, text, text_path_, flags.shape, policies_.tidal.at(0).budget);
  const int context = texts_.prefix;
  if (policies_.tidal.at(context).budget >= context) {
    fail("--budget: {} positions of a prefix of {} leave nothing out, expected fewer",
         policies_.tidal.at(context).budget, context);
  }
  rows_ = std::make_unique<CalibrationRows>(beside(plan_path_, ".rows.jsonl"), backend_->name(), model_, text,
                                            policies_, flags.shape, context, kv_type(flags_.backend.cache));
  for (const auto& [key, loss] : rows_->losses()) {
    table_.add(key.first, key.second, loss);
    earlier_ += loss.tokens;
  }
  CalibrationLosses::Options options;
  options.kv_type = kv_type(flags_.backend.cache);
  options.kv_place = kv_place_;
  if (wants(PlanKind::Sketch)) {
    // As many layers scan as ever do, with every width.
    for (const int bits : sketch_search_options().bits) {
      options.plans.push_back(plan_with(Candidate::sketch(bits, 0), hp, policies_));
    }
  }
  options.batch = flags.batch;
  options.prefilled = [this](int64_t tokens) { return advance((tokens + half_++ % 2) / 2); };
  options.decoded = [this](int64_t steps) { return advance(steps); };
  losses_ = std::make_unique<CalibrationLosses>(*backend_, model_, texts_.texts, policies_, std::move(options));
  status_.clear();
  tell_kv_place(losses_->engine().pool());
}

SearchOptions Calibrate::search_options() const {
  SearchOptions options;
  options.layers = layers_;
  std::erase_if(options.first_select, [&](int l) { return l > options.layers - 2; });
  options.selects = std::min(flags_.wanted.selects.value_or(options.selects), options.layers - 2);
  options.rungs = {texts_.choice};
  if (!flags_.exhaustive) {
    // Most of the time goes into the first rung, where all plans are; a place and a prompt tell the hopeless from the
    // rest. The last one has to tell apart what is nearly as good.
    const int first = std::min(texts_.first, 2), second = std::max(first, (texts_.first + 2) / 3);
    options.rungs = {first, second, texts_.first, texts_.choice};
  }
  return options;
}

SketchSearchOptions Calibrate::sketch_search_options() const {
  SketchSearchOptions options;
  options.layers = layers_;
  std::erase_if(options.dense, [&](int dense) { return dense > std::max(0, options.layers - 2); });
  if (flags_.plan.dense_layers) options.dense = {*flags_.plan.dense_layers};
  if (flags_.plan.sketch) options.bits = {options.first_bits = *flags_.plan.sketch};
  options.texts = texts_.choice;
  // What a single layer loses is small against what texts differ by, but all plans see the same ones.
  options.sweep_texts = flags_.exhaustive ? texts_.choice : std::max(1, (texts_.first + 2) / 3);
  return options;
}

std::vector<TextLoss> Calibrate::measure(std::span<const Candidate> plans, int text) {
  // In pieces, so that a kill loses little.
  std::vector<TextLoss> losses;
  const auto most = static_cast<size_t>(flags_.batch);
  for (size_t first = 0; first < plans.size(); first += most) {
    const auto piece = plans.subspan(first, std::min(most, plans.size() - first));
    const std::vector<TextLoss> measured = losses_->measure(piece, text);
    for (size_t i = 0; i < piece.size(); ++i) rows_->add(piece[i], text, measured[i]);
    losses.insert(losses.end(), measured.begin(), measured.end());
  }
  return losses;
}

bool Calibrate::advance(int64_t units) {
  done_ += units;
  status_.show("calibrating, steps of plans: " +
               progress_text(done_, std::max(total_, done_), earlier_, timer_.seconds()));
  return !interrupt_.raised();
}

int64_t Calibrate::expected_work() const {
  // The same search over losses that cost nothing. What is tried last is always best: so no refinement ends early.
  int64_t steps = 0;
  double plan = 0;
  LossTable invented([&](std::span<const Candidate> plans, int text) {
    const auto tokens = static_cast<int64_t>(texts_.texts[static_cast<size_t>(text)].steps.size());
    std::vector<TextLoss> losses(plans.size());
    for (TextLoss& loss : losses) loss = {tokens, static_cast<double>(tokens) / ++plan, 0};
    steps += tokens * static_cast<int64_t>(plans.size());
    return losses;
  });
  if (wants(PlanKind::Tidal)) search_plans(invented, search_options());
  if (wants(PlanKind::Sketch)) search_sketch_plans(invented, sketch_search_options());
  for (const CalibrationText& text : texts_.texts) {
    steps += (static_cast<int64_t>(text.prefix.size()) - text.shared) / 2;
  }
  return steps;
}

TextLoss Calibrate::loss_of_kind(const Candidate& plan, bool retrieval) const {
  TextLoss loss;
  for (int text = 0; text < texts_.choice; ++text) {
    if (texts_.texts[static_cast<size_t>(text)].retrieval == retrieval) loss.add(table_.over(plan, text, text + 1));
  }
  return loss;
}

double Calibrate::timed(const std::string& what, const Plan& plan) {
  if (const auto known = rows_->seconds(what)) return *known;
  const double seconds = losses_->step_seconds(plan);
  rows_->add_seconds(what, seconds);
  return seconds;
}

bool Calibrate::out_of_reach(const RankedPlan& best) const {
  // Three more Select layers brought the KL of the models measured (docs/accuracy.md) down to a third, none to this.
  constexpr double kShare = 0.25;
  const auto bytes = [&](const Candidate& plan) {
    return losses_->engine().decode_bytes(texts_.prefix, plan_with(plan, model_.hp, policies_));
  };
  return std::any_of(sketches_.plans.begin(), sketches_.plans.end(), [&](const RankedPlan& sketch) {
    return sketch.loss.mean() < kShare * best.loss.mean() && bytes(sketch.plan) <= bytes(best.plan);
  });
}

void Calibrate::summarise() {
  const Hyperparameters& hp = model_.hp;
  report_.model = file_name(flags_.model);
  report_.text = file_name(text_path_);
  report_.context = texts_.prefix;
  const auto bytes = [&](const Plan& plan) { return losses_->engine().decode_bytes(texts_.prefix, plan); };
  report_.full_bytes = bytes(Plan::full(hp.layers));
  std::vector<RankedPlan> all;
  for (const std::vector<RankedPlan>& same : found_) all.insert(all.end(), same.begin(), same.end());
  all.insert(all.end(), sketches_.plans.begin(), sketches_.plans.end());
  for (const RankedPlan& ranked : all) {
    CalibratedPlan& entry = report_.plans.emplace_back();
    entry.found = {ranked.plan, ranked.loss.mean(), bytes(plan_with(ranked.plan, hp, policies_))};
    entry.all = ranked.loss;
    entry.text = loss_of_kind(ranked.plan, false);
    entry.retrieval = loss_of_kind(ranked.plan, true);
  }
  report_.chosen = report_.plans.size();
  mark_frontier(report_.plans);
  report_.full_seconds = timed("full", Plan::full(hp.layers));
  expect_seconds(PlanKind::Tidal);
  expect_seconds(PlanKind::Sketch);
  summarise_sweeps();
}

void Calibrate::expect_seconds(PlanKind kind) {
  std::optional<StepTime> time;
  for (CalibratedPlan& plan : report_.plans) {
    if (plan.found.plan.kind != kind) continue;
    if (!time) {
      const double seconds = timed(format_candidate(plan.found.plan), plan_with(plan.found.plan, model_.hp, policies_));
      time.emplace(report_.full_bytes, report_.full_seconds, plan.found.bytes, seconds);
    }
    plan.seconds = time->seconds(plan.found.bytes);
  }
}

void Calibrate::summarise_sweeps() {
  if (wants(PlanKind::Tidal)) {
    const int seen = search_options().rungs.front();
    for (const int first : search_options().first_select) {
      for (int l = first + 1; l < layers_; ++l) {
        const Candidate plan = Candidate::tidal({first, l});
        report_.sweep.push_back({plan, table_.over(plan, 0, seen)});
      }
    }
  }
  report_.reuse = sketches_.sweep;
  report_.reuse_base = {sketches_.best, sketches_.best_loss};
}

std::string Calibrate::about(const CalibratedPlan& plan) const {
  const CalibrationShape& shape = flags_.shape;
  return fmt::format(
      "KL {:.4f} ± {:.4f} nats from full attention's next token over {} tokens ({} places of {} x {} steps behind {} "
      "tokens "
      "of {}, {} pass-key prompts), by tidal calibrate.",
      plan.all.mean(), plan.all.error(), plan.all.tokens, shape.places, shape.stretches, shape.steps, texts_.prefix,
      report_.text, shape.prompts);
}

void Calibrate::finish() {
  std::vector<FoundPlan> found;
  for (const CalibratedPlan& plan : report_.plans) found.push_back(plan.found);
  std::optional<Error> none;
  try {
    report_.chosen = choose_plan(found, flags_.wanted);
  } catch (const Error& error) {
    none = error;  // the table still tells what there is
  }
  std::vector<Candidate> shown;
  for (const size_t i : shown_plans(report_)) shown.push_back(report_.plans[i].found.plan);
  const int end = static_cast<int>(texts_.texts.size());
  table_.require(shown, texts_.choice, end);
  for (const size_t i : shown_plans(report_)) {
    CalibratedPlan& plan = report_.plans[i];
    plan.held_out = table_.over(plan.found.plan, texts_.choice, end);
  }
  status_.clear();
  write_out(table(report_));
  frontier_file_.write(frontier_svg(report_));
  if (!report_.sweep.empty()) sweep_file_.write(sweep_svg(report_));
  if (!report_.reuse.empty()) {
    write_out("\n" + reuse_table(report_));
    reuse_file_.write(reuse_svg(report_));
  }
  if (none) throw Error(*none);
  const CalibratedPlan& chosen = report_.plans[report_.chosen];
  plan_file_.write(to_json(plan_with(chosen.found.plan, model_.hp, policies_), model_.hp, about(chosen)));
  note(fmt::format("{}: {}; {}", plan_path_, format_candidate(chosen.found.plan), about(chosen)));
}

void Calibrate::run() {
  note(fmt::format("{}: {} places of {} x {} steps behind {} tokens, {} retrieval prompts, {} places held out",
                   text_path_, flags_.shape.places, flags_.shape.stretches, flags_.shape.steps, texts_.prefix,
                   flags_.shape.prompts, flags_.shape.held_out));
  if (layers_ < model_.hp.layers) {
    note(fmt::format("layers are counted among those that read the whole context: {}",
                     fmt::join(model_.hp.layers_that_read_all(), ", ")));
  }
  done_ = earlier_;
  total_ = expected_work();
  timer_.restart();
  try {
    if (wants(PlanKind::Sketch)) sketches_ = search_sketch_plans(table_, sketch_search_options());
    if (wants(PlanKind::Tidal)) {
      SearchOptions options = search_options();
      if (!flags_.wanted.selects) options.enough = [this](const RankedPlan& best) { return out_of_reach(best); };
      found_ = search_plans(table_, options);
    }
    summarise();
    finish();
  } catch (const CalibrationLosses::Halted&) {
    status_.clear();
    note("stopped; the same command goes on from here");
    throw Stopped{interrupt_.signal()};
  }
}

}  // namespace

void add_calibrate_command(CLI::App& app) {
  const auto flags = std::make_shared<CalibrateFlags>();
  CLI::App* command = app.add_subcommand(
      "calibrate", "Find the best plans for a model on your text: the layers that should select, or scan");
  add_calibrate_flags(*command, *flags);
  command->callback([flags] {
    check(*flags);
    Calibrate(*flags).run();
  });
}

}  // namespace tidal
