#include "cli/eval/session.h"

#include <algorithm>
#include <filesystem>
#include <limits>

#include "cli/console/output.h"
#include "cli/console/text_file.h"
#include "cli/options/thread_count.h"
#include "core/error.h"
#include "core/utf8.h"
#include "report/progress.h"

namespace tidal {
namespace {

using Json = ResultFile::Json;

/// What tells this model's results from another's.
Json fingerprint(const Model& model, const std::string& path) {
  const Hyperparameters& hp = model.hp;
  return {{"file", file_name(path)}, {"bytes", model.file_bytes}, {"architecture", hp.architecture},
          {"layers", hp.layers},     {"width", hp.width},         {"heads", hp.heads},
          {"kv_heads", hp.kv_heads}, {"vocabulary", hp.vocab}};
}

/// OUTPUT.svg beside OUTPUT.jsonl.
std::string picture_path(const EvalFlags& flags) {
  if (!flags.svg.empty() || flags.output.empty()) return flags.svg;
  return std::filesystem::path(flags.output).replace_extension(".svg").string();
}

}  // namespace

void add_eval_flags(CLI::App& app, EvalFlags& flags) {
  app.add_option("-m,--model", flags.model, "GGUF model file")->envname("TIDAL_MODEL")->type_name("FILE")->required();
  app.add_option("-t,--threads", flags.threads, "Threads (default: all processors)")
      ->envname("TIDAL_THREADS")
      ->type_name("N");
  add_backend_options(app, flags.backend);
  add_kv_options(app, flags.kv);
  app.add_option("-o,--output", flags.output,
                 "Keep the rows in this file (JSON Lines); a run with the same file goes on where it ended (default: "
                 "they are not kept)")
      ->type_name("FILE");
  app.add_option("--svg", flags.svg, "Draw the results (default: beside the output file)")->type_name("FILE");
  add_eval_plan_flags(app, flags.plans);
}

EvalSession::EvalSession(const EvalFlags& flags)
    : flags_(flags),
      backend_(open_backend(flags.backend, thread_count(flags.threads), flags.model)),
      place_(kv_place(flags.kv, *backend_)),
      model_(load_model(flags.model, *backend_)),
      tokenizer_(std::make_unique<Tokenizer>(open_tokenizer(flags.model, model_.hp))),
      plans_(eval_plans(flags.plans, flags.model, model_.hp)),
      svg_(picture_path(flags)) {
  if (!svg_.empty() && svg_ == flags.output) fail("--svg: {} is the output file, expected another one", svg_);
}

EvalSession::~EvalSession() = default;

std::string EvalSession::model_name() const {
  return model_.hp.name.empty() ? file_name(flags_.model) : model_.hp.name;
}

std::vector<Plan> EvalSession::later_plans() const {
  std::vector<Plan> plans;
  for (const EvalPlan& plan : plans_) plans.push_back(plan.plan);
  return plans;
}

TextTokens EvalSession::read_text(const std::string& file) const {
  std::string path = file;
  if (path.empty()) {
    path = (std::filesystem::path(flags_.model).parent_path() / "kjv.txt").string();
    std::error_code ignored;
    if (!std::filesystem::exists(path, ignored)) {
      fail("text: no file given (-f), and there is no kjv.txt beside the model, which tools/kjv.sh writes");
    }
  }
  status_.show(path + ": reading the text");
  return {*tokenizer_, read_text_file(path), path};
}

void EvalSession::check_context(int64_t length) const {
  if (length <= model_.hp.context) return;
  status_.clear();
  warn_of_long_context(length, model_.hp.context);
}

void EvalSession::open(const std::string& task, const Json& settings) {
  task_ = task;
  Json header = {
      {"tidal", "eval " + task}, {"model", fingerprint(model_, flags_.model)}, {"backend", backend_->name()}};
  // Rows of one type do not go on those of another; files from before there were two have none.
  if (kv_type() != KvType::Bf16) header["kv_type"] = kv_type_name(kv_type());
  header.update(settings);
  if (!svg_.empty()) picture_ = std::make_unique<WholeFile>(svg_);
  status_.clear();
  if (flags_.output.empty()) {
    note("rows are not kept; --output FILE keeps them, and a run that was stopped goes on from there");
  } else {
    file_.emplace(flags_.output, header);
    const size_t rows = file_->rows().size();
    if (rows > 0) note(fmt::format("{}: goes on behind {} finished rows", flags_.output, rows));
  }
  for (const EvalPlan& plan : plans_) note(fmt::format("{}: {}", plan.name, plan.source));
}

const Json* EvalSession::find(const Json& key) const {
  if (file_) return file_->find(key);
  const auto matches = [&](const Json& row) {
    return std::all_of(key.items().begin(), key.items().end(), [&](const auto& field) {
      return row.contains(field.key()) && row[field.key()] == field.value();
    });
  };
  const auto row = std::find_if(rows_.begin(), rows_.end(), matches);
  return row == rows_.end() ? nullptr : &*row;
}

void EvalSession::add(Json key, const Json& values) {
  key.update(values);
  if (file_) {
    file_->add(key);
  } else {
    rows_.push_back(std::move(key));
  }
}

void EvalSession::begin(int64_t work) {
  work_ = work;
  done_ = 0;
  timer_.restart();
}

void EvalSession::advance(int64_t work) {
  interrupt_.check();
  done_ += work;
  const double share = std::min(1.0, static_cast<double>(done_) / static_cast<double>(work_));
  std::string text = fmt::format("eval {}: {:.0f} %", task_, 100 * share);
  const std::string left = format_duration(timer_.seconds() / share * (1 - share));
  if (share < 1 && !left.empty()) text += ", " + left + " left";
  status_.show(text);
}

void EvalSession::draw(const std::string& svg) {
  picture_->write(svg);
  note(fmt::format("{}: the picture", svg_));
}

void EvalSession::print(const std::string& text) {
  status_.clear();
  write_out(text);
}

double number(const Json& value) {
  return value.is_number() ? value.get<double>() : std::numeric_limits<double>::quiet_NaN();
}

void run_eval(const EvalFlags& flags, const std::function<void(EvalSession&)>& evaluate) {
  EvalSession session(flags);
  try {
    evaluate(session);
  } catch (const Stopped&) {
    note(flags.output.empty() ? std::string("stopped; the rows are lost")
                              : fmt::format("stopped; the same command goes on behind the rows in {}", flags.output));
    throw;
  }
}

}  // namespace tidal
