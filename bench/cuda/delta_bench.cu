// The delta rule of recurrent layers on a GPU, between its projections: decode rows and long chunks.
// Run: tidal_bench_cuda_delta [small] [decode|chunks]...; all without arguments; small: in the shapes of devices of 99
// KiB of shared memory a block.
#include <numeric>
#include <string>
#include <vector>

#include "backend/cuda/delta/delta.h"
#include "backend/cuda/runtime/read_stream.h"
#include "matrices_fixture.cuh"

namespace {

/// qwen3.5-35b-a3b's and qwen3-next's.
constexpr tidal::DeltaNet kNet{.taps = 4, .head_dim = 128, .key_heads = 16, .value_heads = 32};

/// `chunks` chunks of so many rows each, every one with a state of its own.
class Chunks {
 public:
  Chunks(int chunks, int rows)
      : net_(kNet),
        rows_(chunks * rows),
        states_(random_.floats(static_cast<size_t>(chunks) * net_.state_elements(), 0.1f)),
        mixed_(random_.floats(static_cast<size_t>(rows_) * net_.mixed_width(), 1)),
        gates_(random_.floats(static_cast<size_t>(rows_) * net_.value_width(), 1)),
        beta_(random_.floats(static_cast<size_t>(rows_) * net_.value_heads, 1)),
        alpha_(random_.floats(static_cast<size_t>(rows_) * net_.value_heads, 1)),
        taps_(random_.floats(static_cast<size_t>(net_.mixed_width()) * net_.taps, 0.5f)),
        alpha_bias_(net_.value_heads),
        decay_(std::vector<float>(net_.value_heads, -0.5f)),
        norm_(std::vector<float>(net_.head_dim, 1)),
        convolved_(mixed_.count),
        kept_(alpha_.count),
        written_(alpha_.count),
        out_(gates_.count),
        arrived_(std::vector<uint32_t>(static_cast<size_t>(rows_) * net_.key_heads, 0)),
        scratch_(static_cast<size_t>(kScratch) / sizeof(float)),
        row_chunk_(rows_),
        positions_(rows_),
        chunks_(chunks) {
    std::vector<DeviceChunk> host(chunks);
    std::vector<int32_t> of_row(rows_), positions(rows_);
    for (int c = 0; c < chunks; ++c) {
      host[c] = {};
      host[c].state = states_.data + c * net_.state_elements();
      host[c].first_row = c * rows;
      host[c].rows = rows;
      host[c].position = 100;
      for (int i = 0; i < rows; ++i) of_row[c * rows + i] = c, positions[c * rows + i] = 100 + i;
    }
    must(cudaMemcpy(chunks_.data, host.data(), host.size() * sizeof(DeviceChunk), cudaMemcpyHostToDevice));
    must(cudaMemcpy(row_chunk_.data, of_row.data(), of_row.size() * sizeof(int32_t), cudaMemcpyHostToDevice));
    must(cudaMemcpy(positions_.data, positions.data(), positions.size() * sizeof(int32_t), cudaMemcpyHostToDevice));
    const bool decode = rows <= kDecodeRows;
    if (!decode) long_chunks_.assign(chunks, rows);
    params_ = {.tables = {.positions = positions_.data, .row_chunk = row_chunk_.data, .chunks = chunks_.data},
               .net = net_,
               .rows = rows_,
               .decode_rows = decode ? rows_ : 0,
               .decode_chunks = decode ? chunks : 0,
               .long_chunks = long_chunks_,
               .epsilon = 1e-6f,
               .taps = taps_.data,
               .alpha_bias = alpha_bias_.data,
               .decay = decay_.data,
               .norm = norm_.data,
               .mixed = mixed_.data,
               .gates = gates_.data,
               .beta = beta_.data,
               .alpha = alpha_.data,
               .convolved = convolved_.data,
               .kept = kept_.data,
               .written = written_.data,
               .arrived = arrived_.data,
               .scratch = scratch_.data,
               .scratch_bytes = kScratch,
               .out = out_.data};
  }

  /// Microseconds of a layer.
  double time(int count) const {
    return 1e3 * time_graph(count, [&](int) { launch_delta(params_, stream); });
  }
  double state_bytes() const { return 4.0 * static_cast<double>(states_.count); }

 private:
  static constexpr int64_t kScratch = int64_t{64} << 20;  // a panel's

  Random random_;
  tidal::DeltaNet net_;
  int rows_;
  Device<float> states_, mixed_, gates_, beta_, alpha_, taps_, alpha_bias_, decay_, norm_, convolved_, kept_, written_,
      out_;
  Device<uint32_t> arrived_;
  Device<float> scratch_;
  Device<int32_t> row_chunk_, positions_;
  Device<DeviceChunk> chunks_;
  std::vector<int> long_chunks_;
  DeltaParams params_;
};

void run(const std::vector<std::string>& parts) {
  must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  const Wanted wanted(parts, {});
  const double rate = measure_read_stream(stream);
  std::printf("read stream %.0f GB/s\n", rate);
  if (wanted("decode")) {
    for (const auto& [chunks, rows] : {std::pair{1, 1}, {1, 4}, {1, 8}, {8, 1}, {64, 1}}) {
      const Chunks all(chunks, rows);
      const double us = all.time(16), floor = 2 * all.state_bytes() / rate / 1e3;
      std::printf(
          "decode, %2d chunks of %d rows: %8.2f us a layer; its states read and written at the stream's rate %.2f\n",
          chunks, rows, us, floor);
    }
  }
  if (!wanted("chunks")) return;
  for (const int rows : {64, 512, 2048}) {
    std::printf("a chunk of %4d rows: %8.2f us a layer\n", rows, Chunks(1, rows).time(4));
  }
}

}  // namespace

int main(int count, char** arguments) { return run_program(run, count, arguments); }
