// The results of `tidal bench` and the four ways to print them.
#pragma once

#include <cstdio>
#include <optional>
#include <string>
#include <vector>

namespace tidal {

/// One test of one engine.
struct BenchRow {
  std::string engine;                     ///< tidal or llama.cpp
  std::string attention;                  ///< full, tidal, sketch, exact, ...
  std::string test;                       ///< pp512: prefill of 512 tokens; tg64: decoding of 64
  int depth = 0;                          ///< positions in the cache before the test
  int batch = 1;                          ///< sequences decoded together
  double tokens_per_second = 0;           ///< of all sequences, median
  double ms_per_token = 0;                ///< 1000 / tokens_per_second
  double ms_min = 0;                      ///< the same of the fastest step or run
  std::optional<double> gb_per_s;         ///< decoding: bytes that a step must read over its median time, 1e9 bytes
  std::optional<double> limit_share;      ///< gb_per_s over the machine's read stream
  std::optional<double> accepted_drafts;  ///< exact mode: share of the sparse drafts; none where nothing was drafted
  std::optional<double> accepted_copies;  ///< exact mode: share of the drafts copied from the text
  std::string machine;                    ///< processor, "" where unknown
  std::string model;
  int threads = 1;
  std::optional<int> budget;   ///< of sparse attention
  std::optional<int> correct;  ///< tokens between corrections, where its plan has them
  std::string kv_type;         ///< element type of the cache
  std::string fill;            ///< how the cache was filled to the depth: prefill or random
  int repetitions = 1;
};

enum class BenchFormat { Markdown, Json, Csv, JsonLines };

/// Throws Error listing the known words for any other.
BenchFormat bench_format_from(const std::string& word);

/// Prints rows to a file as they come; Markdown aligns its columns and is printed by finish().
class BenchWriter {
 public:
  /// Rows of JSON and CSV end with limit_share, or for `details` go on with model, threads, budget, ...
  BenchWriter(std::FILE* out, BenchFormat format, bool details) : out_(out), format_(format), details_(details) {}

  /// Both throw Error when the output cannot be written (disk full).
  void add(const BenchRow& row);
  /// `notes`: sentences for the reader, below the Markdown table only.
  void finish(const std::vector<std::string>& notes);

 private:
  void write(const std::string& text);

  std::FILE* out_;
  BenchFormat format_;
  bool details_;
  std::vector<BenchRow> rows_;
};

/// The Markdown table, with columns for exact mode's drafts when it was measured, and with the column `vs llama.cpp`
/// (tokens per second over the baseline's in the same test, depth and batch) when there is a baseline among the rows.
std::string markdown_table(const std::vector<BenchRow>& rows);

}  // namespace tidal
