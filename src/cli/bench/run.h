// What `tidal bench` measures, and how the times of one test become a row.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cli/bench/row.h"
#include "engine/engine.h"
#include "engine/exact.h"

namespace tidal {

/// Thrown out of the tests when BenchRun::stopped says so; the rows reported before stand.
struct BenchStopped {};

/// The tests of one command, for all engines the same.
struct BenchRun {
  std::vector<int> depths;        ///< ascending
  std::vector<int> batches;       ///< ascending
  int prompt = 512;               ///< tokens of the prefill test; 0: none
  int generate = 64;              ///< steps of the decode test; 0: none
  int repetitions = 5;            ///< of every test
  bool random = false;            ///< fill the cache with random numbers instead of a prefill
  bool whole_windows = false;     ///< EngineOptions::whole_windows
  KvPlace kv_place;               ///< EngineOptions::kv_place
  KvType kv_type = KvType::Bf16;  ///< of our KV cache
  std::vector<Token> tokens;      ///< [context()]: fill the cache, then are the prompt
  double limit = 0;               ///< read stream, GB/s
  int64_t weight_bytes = 0;       ///< read by a decode step, whatever the batch
  Hyperparameters hp;             ///< of the model
  BenchRow common;                ///< what all rows share: model, threads, fill, repetitions
  std::function<void(const BenchRow&)> report;
  std::function<void(const std::string&)> progress;
  std::function<bool()> stopped;  ///< asked often; true ends the tests with BenchStopped

  int context() const;  ///< positions that the longest test reaches
  /// Whether the prefill test runs beside this batch's decode test: it takes one sequence, once for every depth.
  bool prefills(int batch) const { return prompt > 0 && batch == batches.front(); }
  std::span<const Token> filled(int depth) const { return std::span(tokens).first(depth); }
  std::span<const Token> prompt_at(int depth) const { return std::span(tokens).subspan(depth, prompt); }
};

/// Which engine, attention, depth and batch a row is about.
struct BenchCase {
  std::string engine;
  std::string attention;
  int depth = 0;
  int batch = 1;
  std::optional<int> budget;
  std::string kv_type;
  std::optional<int> correct = {};
};

/// Rows from the seconds of every prefill, and of every decode step of all repetitions. `bytes`: read by one sequence's
/// step, weights included, on average.
BenchRow prefill_row(const BenchRun& run, const BenchCase& which, std::vector<double> seconds);
BenchRow decode_row(const BenchRun& run, const BenchCase& which, std::vector<double> seconds, double bytes);

/// Share of the drafts that were accepted; none where none was tried.
std::optional<double> acceptance(const DraftCounts& drafts);

/// Bytes that a decode step of one sequence reads by full attention `depth` positions deep, weights included, on
/// average over run.generate steps.
double full_attention_bytes(const BenchRun& run, int depth);

/// One kind of attention of our engine.
struct BenchPlan {
  std::string attention;  ///< full, tidal, sketch, default, exact, exact-tidal, exact-sketch
  bool exact = false;     ///< the plan drafts, and the text is the model's own, greedy
  Plan plan;
  std::string source;  ///< of ChosenPlan
};

/// What the engine is made for: run.context() and the largest batch.
EngineOptions engine_options(const BenchRun& run);
/// Our engine, each plan in turn. Returns the bytes of memory that its sketches took.
int64_t bench_tidal(const BenchRun& run, Backend& backend, const Model& model, std::span<const BenchPlan> plans);
/// llama.cpp with the model at `path`.
void bench_llama(const BenchRun& run, const std::string& path);

}  // namespace tidal
