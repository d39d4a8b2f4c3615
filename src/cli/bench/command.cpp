#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <optional>
#include <random>

#include "cli/bench/machine.h"
#include "cli/bench/options.h"
#include "cli/bench/run.h"
#include "cli/commands.h"
#include "cli/console/interrupt.h"
#include "cli/console/terminal.h"
#include "cli/console/text_file.h"
#include "cli/options/backend_options.h"
#include "cli/options/kv_options.h"
#include "cli/options/plan_options.h"
#include "cli/options/thread_count.h"
#include "cli/options/window_options.h"
#include "core/error.h"
#include "core/utf8.h"
#include "model/load.h"

namespace tidal {
namespace {

struct BenchFlags {
  std::string model, shape, type = "q4_0", text;
  int prompt = 512, generate = 64, repetitions = 5;
  std::optional<int> threads;
  std::string depths = "0", batches = "1", baseline, fill = "prefill", format = "md";
  BackendOptions backend;
  KvOptions kv;
  std::optional<std::string> attention;
  bool details = false, whole_windows = false;
  PlanOptions plan;
};

void check(const BenchFlags& flags) {
  if (flags.model.empty() == flags.shape.empty())
    fail("bench: give either a model file (-m) or a known shape (--shape)");
  check_baseline(flags.baseline);
  if (!flags.baseline.empty() && flags.model.empty()) fail("--baseline: llama.cpp needs a model file (-m)");
  if (!flags.text.empty() && (flags.model.empty() || flags.fill == "random")) {
    fail("-f: a text needs a model file (-m) to read it, and --fill prefill");
  }
  if (flags.fill != "prefill" && flags.fill != "random") {
    fail("--fill: '{}' is not known, expected prefill or random", flags.fill);
  }
  if (flags.prompt < 0 || flags.generate < 0) fail("bench: -p and -n must be 0 or more");
  if (flags.prompt == 0 && flags.generate == 0) fail("bench: -p 0 and -n 0 leave nothing to measure");
  if (flags.repetitions < 1) fail("-r: {} given, at least 1 is needed", flags.repetitions);
}

std::vector<Token> random_tokens(int count, int vocab) {
  std::mt19937 random(1);
  std::uniform_int_distribution<Token> token(0, vocab - 1);
  std::vector<Token> tokens(static_cast<size_t>(count));
  std::generate(tokens.begin(), tokens.end(), [&] { return token(random); });
  return tokens;
}

/// The first `count` tokens of a text file.
std::vector<Token> text_tokens(const std::string& path, const std::string& model, int count) {
  std::string text = read_text_file(path);
  // Tokens of text are far shorter, so the rest of a long one need not be divided.
  const size_t bytes = static_cast<size_t>(count) * 32;
  if (bytes < text.size()) text = Utf8Stream().push(std::string_view(text).substr(0, bytes));
  std::vector<Token> tokens = open_tokenizer(model).encode(text, true, false);
  if (static_cast<int>(tokens.size()) < count) {
    fail("{}: its text has {} tokens, the tests need {}", path, tokens.size(), count);
  }
  tokens.resize(count);
  return tokens;
}

std::string mebibytes(int64_t bytes) { return fmt::format("{:.0f} MiB", static_cast<double>(bytes) / 1048576.0); }

void run_bench(const BenchFlags& flags) {
  check(flags);
  const BenchFormat format = bench_format_from(flags.format);
  const int threads = thread_count(flags.threads);
  const Interrupt interrupt;
  const StatusLine status;
  BenchRun run;
  run.depths = number_list("-d", flags.depths, 0);
  run.batches = number_list("-b", flags.batches, 1);
  run.prompt = flags.prompt;
  run.generate = flags.generate;
  run.repetitions = flags.repetitions;
  run.random = flags.fill == "random";
  run.whole_windows = flags.whole_windows;
  run.kv_type = kv_type(flags.backend.cache);
  run.stopped = [&] { return interrupt.raised(); };
  run.progress = [&](const std::string& text) { status.show(text); };

  const auto backend = open_backend(flags.backend, threads, [&] {
    return flags.shape.empty() ? read_hyperparameters(GgufFile::open(flags.model)).layers
                               : known_shape(flags.shape).layers;
  });
  run.kv_place = kv_place(flags.kv, *backend);
  status.show("measuring the read stream");
  run.limit = backend->read_stream();
  status.show("loading the model");
  reset_peak_memory();
  const auto beside = [&](const Hyperparameters& hp) {
    int64_t bytes = 0;
    for (const BenchPlan& plan : bench_plans(flags.attention, flags.plan, hp)) {
      bytes = std::max(bytes, least_memory(*backend, hp, plan.plan, engine_options(run)).total());
    }
    return bytes;
  };
  std::optional<Model> model(
      flags.shape.empty() ? load_model(flags.model, *backend, beside)
                          : random_model(known_shape(flags.shape), weight_type_from(flags.type), 1, *backend, beside));
  const std::vector<BenchPlan> plans =
      bench_plans(flags.attention, flags.plan, model->hp, full_below_of(*backend, model->hp, engine_options(run)));
  run.tokens = flags.text.empty() ? random_tokens(run.context(), model->hp.vocab)
                                  : text_tokens(flags.text, flags.model, run.context());
  run.weight_bytes = model->decode_weight_bytes();
  run.hp = model->hp;
  const bool on_host = backend->device().empty();
  run.common.machine = on_host ? processor_name() : backend->device();
  run.common.model = flags.shape.empty() ? file_name(flags.model) : flags.shape + " " + model->quantisation;
  run.common.threads = threads;
  run.common.fill = flags.fill;
  run.common.repetitions = flags.repetitions;

  BenchWriter writer(stdout, format, flags.details);
  run.report = [&](const BenchRow& row) {
    status.clear();
    writer.add(row);
  };
  std::vector<std::string> notes = {
      fmt::format("{}: {}{}; cache filled by {}; medians of {} runs.", run.common.model,
                  on_host ? fmt::format("{} threads on ", threads) : "", run.common.machine, flags.fill,
                  flags.repetitions),
      fmt::format(
          "GB/s: weights, K/V and sketches that a decode step must read. The limit, this machine's read stream: {:.1f} "
          "GB/s.",
          run.limit)};
  for (const BenchPlan& plan : plans) {
    if (plan.attention != "default" || plan.plan.full_below == 0) continue;
    notes.push_back(fmt::format("default: full attention below {} positions, {} attention from there on.",
                                plan.plan.full_below, kind_of(plan.plan)));
  }
  try {
    const int64_t sketches = bench_tidal(run, *backend, *model, plans);
    const int64_t peak = peak_memory(), weights = model->file_bytes;
    const EngineMemory memory = engine_memory(*backend, run.hp, plans[0].plan, engine_options(run));
    const int64_t cache = memory.cache + memory.host;
    if (peak > 0 && weights > 0) {
      notes.push_back(fmt::format("tidal's peak memory: {}; the model file has {}, the KV cache {}{}.", mebibytes(peak),
                                  mebibytes(weights), mebibytes(cache),
                                  sketches > 0 ? ", the sketches " + mebibytes(sketches) : ""));
    }
    model.reset();
    if (!flags.baseline.empty()) bench_llama(run, flags.model);
  } catch (const BenchStopped&) {
    notes.emplace_back("Stopped before all tests were done.");
  }
  status.clear();
  writer.finish(notes);
  interrupt.check();
}

}  // namespace

void add_bench_command(CLI::App& app) {
  auto flags = std::make_shared<BenchFlags>();
  CLI::App* bench = app.add_subcommand("bench", "Measure prefill and decode speed, like llama-bench");
  bench->add_option("-m,--model", flags->model, "GGUF model file")->envname("TIDAL_MODEL");
  bench->add_option("--shape", flags->shape, "Random weights of a known shape instead of a file: llama-3-8b, ...");
  bench->add_option("--type", flags->type, "Type of the random weights (q4_0, q8_0, q4_K, f16, ...)")
      ->capture_default_str();
  bench->add_option("-f,--file", flags->text, "Fill the cache with this text (default: random tokens)");
  bench->add_option("-p,--n-prompt", flags->prompt, "Tokens of the prefill test, 0 for none")->capture_default_str();
  bench->add_option("-n,--n-gen", flags->generate, "Steps of the decode test, 0 for none")->capture_default_str();
  bench->add_option("-d,--n-depth", flags->depths, "Positions in the cache before a test, a list")
      ->capture_default_str();
  bench->add_option("-b,--batch", flags->batches, "Sequences decoded together, a list")->capture_default_str();
  bench->add_option("-r,--repetitions", flags->repetitions, "Runs of every test; the median counts")
      ->capture_default_str();
  bench->add_option("-t,--threads", flags->threads, "Threads (default: all processors)")->envname("TIDAL_THREADS");
  bench->add_option("--attention", flags->attention, std::string(kBenchAttentionHelp) + "; exact takes batch 1")
      ->type_name("WORD,...");
  add_window_option(*bench, flags->whole_windows);
  add_backend_options(*bench, flags->backend);
  add_kv_options(*bench, flags->kv);
  bench->add_option("--baseline", flags->baseline, "Also measure another engine in this process: llama.cpp");
  bench->add_option("--fill", flags->fill, "How the cache gets to the depth: prefill, or random numbers (fast)")
      ->capture_default_str();
  bench->add_option("-o,--output", flags->format, "Output format: md, json, csv or jsonl")->capture_default_str();
  bench->add_flag("--details", flags->details, "More fields in json, csv and jsonl: machine, model, threads, ...");
  add_plan_options(*bench, flags->plan);
  bench->callback([flags] {
    find_plan_file(flags->plan, flags->model);
    run_bench(*flags);
  });
}

}  // namespace tidal
