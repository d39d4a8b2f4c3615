#include "cli/bench/run.h"

#include <fmt/core.h>

#include <algorithm>
#include <numeric>

#include "cli/bench/llama_baseline.h"
#include "cli/options/kv_options.h"
#include "core/error.h"
#include "core/timer.h"
#include "engine/greedy_chooser.h"

namespace tidal {
namespace {

constexpr int kWarmUpSteps = 3;

double median(std::vector<double>& values) {
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

// `tokens` came out of every time in `seconds`.
BenchRow timed_row(const BenchRun& run, const BenchCase& which, std::string test, double tokens,
                   std::vector<double>& seconds) {
  BenchRow row = run.common;
  row.engine = which.engine;
  row.attention = which.attention;
  row.test = std::move(test);
  row.depth = which.depth;
  row.batch = which.batch;
  row.budget = which.budget;
  row.correct = which.correct;
  row.kv_type = which.kv_type;
  const double middle = median(seconds);
  row.tokens_per_second = tokens / middle;
  row.ms_per_token = 1e3 * middle / tokens;
  row.ms_min = 1e3 * seconds.front() / tokens;
  return row;
}

void check(const BenchRun& run) {
  if (run.stopped()) throw BenchStopped();
}

void say(const BenchRun& run, const BenchCase& which, const std::string& what) {
  run.progress(
      fmt::format("{} {}, depth {}, batch {}: {}", which.engine, which.attention, which.depth, which.batch, what));
}

// Another sequence with the same content in blocks of its own: a fork would make a batch read the same memory again.
Sequence copy_of(const Sequence& from) {
  Sequence copy = from.fork();
  copy.own_blocks();
  return copy;
}

void extend(const BenchRun& run, Engine& engine, Sequence& sequence, int depth) {
  const int from = sequence.length();
  if (from == depth) return;
  if (run.random) {
    engine.fill_random(sequence, depth - from, 1);
    return;
  }
  engine.prefill(sequence, run.filled(depth).subspan(from), [&](int done) {
    check(run);
    run.progress(fmt::format("tidal: prefilling {} of {} tokens", from + done, depth));
    return true;
  });
  sequence.windows().save(depth);
  sequence.states().save();  // what tests go back to
}

double time_prefill(const BenchRun& run, Engine& engine, Sequence& sequence) {
  check(run);
  const int depth = sequence.length();
  const Timer timer;
  engine.prefill(sequence, run.prompt_at(depth));
  const double seconds = timer.seconds();
  engine.go_back(sequence, depth);  // no test pays for what the one before has displaced
  return seconds;
}

// Appends the seconds of `steps` greedy steps of all sequences with tokens from the vocabulary's start to its end.
void time_decode(const BenchRun& run, Engine& engine, std::span<Sequence* const> sequences, int steps,
                 std::vector<double>& seconds) {
  const int depth = sequences[0]->length();
  std::vector<Token> tokens(sequences.size());
  std::vector<Engine::Request> requests(sequences.size());
  uint32_t random = 1;
  for (int step = 0; step < steps; ++step) {
    check(run);
    for (size_t s = 0; s < sequences.size(); ++s) {
      random = random * 1664525u + 1013904223u;
      tokens[s] = static_cast<Token>((random >> 8) % static_cast<uint32_t>(engine.model().hp.vocab));
      requests[s] = {.sequence = sequences[s], .tokens = {&tokens[s], 1}, .decode = true};
    }
    const Timer timer;
    engine.step(requests, 1);
    seconds.push_back(timer.seconds());
  }
  for (Sequence* sequence : sequences) engine.go_back(*sequence, depth);
}

/// `run.repetitions` greedy texts in exact mode: seconds per token of each.
void test_exact(const BenchRun& run, Engine& engine, Sequence& sequence, const BenchCase& which) {
  const int depth = sequence.length();
  ExactDecoder decoder(engine, {});
  GreedyChooser chooser;
  std::vector<double> seconds;
  for (int r = 0; r < run.repetitions; ++r) {
    const Timer timer;
    Token token = run.tokens[depth];
    for (int made = 0; made < run.generate;) {
      check(run);
      const auto more = decoder.advance(sequence, token, run.generate - made, chooser);
      made += static_cast<int>(more.size());
      token = more.back();
    }
    seconds.push_back(timer.seconds() / run.generate);
    engine.go_back(sequence, depth);
  }
  const ExactStatistics& statistics = decoder.statistics();
  const double tokens = static_cast<double>(run.generate) * run.repetitions;
  BenchRow row = decode_row(run, which, std::move(seconds), static_cast<double>(statistics.bytes) / tokens);
  row.accepted_drafts = acceptance(statistics.sparse);
  row.accepted_copies = acceptance(statistics.copied);
  run.report(row);
}

void test_tidal(const BenchRun& run, Engine& engine, const BenchPlan& plan, std::span<Sequence* const> sequences,
                bool prefill) {
  const int depth = sequences[0]->length();
  BenchCase which{"tidal", plan.attention, depth, static_cast<int>(sequences.size()), {}, kv_type_name(run.kv_type)};
  if (prefill) {
    say(run, which, "prefill");
    std::vector<double> seconds;
    time_prefill(run, engine, *sequences[0]);
    for (int r = 0; r < run.repetitions; ++r) seconds.push_back(time_prefill(run, engine, *sequences[0]));
    // Prefill is dense under every plan.
    which.attention = "full";
    run.report(prefill_row(run, which, std::move(seconds)));
  }
  if (run.generate == 0) return;
  which.attention = plan.attention;
  if (plan.plan.has_sparse()) which.budget = plan.plan.policy.budget;
  if (plan.plan.correct > 0 && !plan.exact) which.correct = plan.plan.correct;
  say(run, which, "decode");
  engine.set_plan(plan.plan);
  if (plan.exact) {
    if (sequences.size() == 1) test_exact(run, engine, *sequences[0], which);
    return;
  }
  std::vector<double> seconds;
  time_decode(run, engine, sequences, std::min(kWarmUpSteps, run.generate), seconds);
  seconds.clear();
  for (int r = 0; r < run.repetitions; ++r) {
    std::vector<double> steps;
    time_decode(run, engine, sequences, run.generate, steps);
    // Corrections make a few steps long: the median step would know nothing of them.
    if (which.correct) steps = {std::accumulate(steps.begin(), steps.end(), 0.0) / run.generate};
    seconds.insert(seconds.end(), steps.begin(), steps.end());
  }
  double bytes = 0;
  for (int step = 1; step <= run.generate; ++step) bytes += static_cast<double>(engine.decode_bytes(depth + step));
  run.report(decode_row(run, which, std::move(seconds), bytes / run.generate));
}

void test_llama(const BenchRun& run, LlamaBaseline& baseline, int depth, int batch) {
  using Test = LlamaBaseline::Test;
  BenchCase which{"llama.cpp", "full", depth, batch, {}, baseline.kv_type(Test::Prefill)};
  if (run.prefills(batch)) {
    say(run, which, "prefill");
    baseline.prepare(Test::Prefill, run.filled(depth), 1);
    std::vector<double> seconds;
    baseline.prefill(run.prompt_at(depth));
    for (int r = 0; r < run.repetitions; ++r) seconds.push_back(baseline.prefill(run.prompt_at(depth)));
    run.report(prefill_row(run, which, std::move(seconds)));
  }
  if (run.generate == 0) return;
  say(run, which, "decode");
  which.kv_type = baseline.kv_type(Test::Decode);
  baseline.prepare(Test::Decode, run.filled(depth), batch);
  std::vector<double> seconds;
  baseline.decode(std::min(kWarmUpSteps, run.generate), 1);
  for (int r = 0; r < run.repetitions; ++r) {
    const std::vector<double> steps = baseline.decode(run.generate, 1);
    seconds.insert(seconds.end(), steps.begin(), steps.end());
  }
  run.report(decode_row(run, which, std::move(seconds), full_attention_bytes(run, depth)));
}

}  // namespace

int BenchRun::context() const { return depths.back() + std::max(generate, prompt); }

BenchRow prefill_row(const BenchRun& run, const BenchCase& which, std::vector<double> seconds) {
  BenchCase alone = which;
  alone.batch = 1;
  return timed_row(run, alone, fmt::format("pp{}", run.prompt), run.prompt, seconds);
}

BenchRow decode_row(const BenchRun& run, const BenchCase& which, std::vector<double> seconds, double bytes) {
  BenchRow row = timed_row(run, which, fmt::format("tg{}", run.generate), which.batch, seconds);
  const auto weights = static_cast<double>(run.weight_bytes);
  const double step_bytes = weights + which.batch * (bytes - weights);
  row.gb_per_s = step_bytes * row.tokens_per_second / which.batch * 1e-9;
  if (run.limit > 0) row.limit_share = *row.gb_per_s / run.limit;
  return row;
}

std::optional<double> acceptance(const DraftCounts& drafts) {
  return drafts.tried > 0 ? std::optional(drafts.acceptance()) : std::nullopt;
}

double full_attention_bytes(const BenchRun& run, int depth) {
  // The context grows by a position a step, and with it what is read, a window's end aside.
  const int64_t first = run.hp.kv_bytes_read(depth + 1), last = run.hp.kv_bytes_read(depth + std::max(1, run.generate));
  return static_cast<double>(run.weight_bytes) + static_cast<double>(first + last) / 2;
}

EngineOptions engine_options(const BenchRun& run) {
  EngineOptions options;
  options.context = run.context();
  options.sequences = run.batches.back();
  options.tokens = int64_t{options.context} * options.sequences;
  options.whole_windows = run.whole_windows;
  options.kv_place = run.kv_place;
  options.kv_type = run.kv_type;
  return options;
}

int64_t bench_tidal(const BenchRun& run, Backend& backend, const Model& model, std::span<const BenchPlan> plans) {
  const int largest = run.batches.back();
  EngineOptions options = engine_options(run);
  for (const BenchPlan& plan : plans.subspan(1)) options.later_plans.push_back(plan.plan);
  Engine engine(backend, model, plans[0].plan, options);
  tell_kv_place(engine.pool());
  Sequence first = engine.create();
  for (const int depth : run.depths) {
    extend(run, engine, first, depth);
    std::vector<Sequence> copies;
    std::vector<Sequence*> sequences = {&first};
    copies.reserve(largest);
    for (const int batch : run.batches) {
      while (static_cast<int>(sequences.size()) < batch) {
        copies.push_back(copy_of(first));
        sequences.push_back(&copies.back());
      }
      for (const BenchPlan& plan : plans) {
        test_tidal(run, engine, plan, sequences, &plan == &plans[0] && run.prefills(batch));
      }
    }
  }
  return engine.pool().sketch_bytes();
}

void bench_llama(const BenchRun& run, const std::string& path) {
  run.progress("llama.cpp: loading, choosing the faster type of cache");
  LlamaBaseline baseline({path, run.common.threads, run.context(), run.random, run.stopped});
  try {
    for (const int depth : run.depths) {
      for (const int batch : run.batches) test_llama(run, baseline, depth, batch);
    }
  } catch (const Error&) {
    // libllama reports that it was told to stop as a failure.
    check(run);
    throw;
  }
}

}  // namespace tidal
