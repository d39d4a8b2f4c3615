// Matrix products: quantised dots of decoding against the read stream, panels of prefill in GFLOP/s.
#include <fmt/core.h>

#include <algorithm>

#include "backend/cpu/dot_matmul.h"
#include "backend/cpu/gemm.h"
#include "common.h"

namespace tidal::bench {
namespace {

constexpr ggml_type kTypes[] = {GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_Q5_0,
                                GGML_TYPE_Q8_0, GGML_TYPE_Q4_K, GGML_TYPE_Q6_K};

void matvec(benchmark::State& state, ggml_type type, int64_t rows, int64_t cols) {
  backend();  // ggml's tables
  const int tokens = static_cast<int>(state.range(0));
  Weights weights(type, rows, cols);
  std::vector<float> x = noise(static_cast<size_t>(tokens) * cols), y(static_cast<size_t>(tokens) * rows);
  QuantisedRows quantised;
  quantised.reserve(tokens, static_cast<int>(cols));
  const double seconds = time_loop(state, [&] {
    quantised.assign({x.data(), tokens, static_cast<int>(cols)});
    const DotJob job{&weights.next(), nullptr, {y.data(), tokens, static_cast<int>(rows)}, false};
    dot_matmul({&job, 1}, quantised, threads());
  });
  count_bytes(state, static_cast<double>(weights.bytes()), seconds);
}

void gemm(benchmark::State& state, ggml_type type, int64_t rows, int64_t cols) {
  static constexpr int kTokens = 512;
  backend();
  Weights weights(type, rows, cols);
  Gemm gemm(threads());
  gemm.reserve(kTokens, static_cast<int>(cols));
  const std::vector<float> x = noise(static_cast<size_t>(kTokens) * cols);
  std::vector<std::byte> elements(gemm.elements().bytes() * x.size());
  gemm.elements().store(x.data(), static_cast<int>(x.size()), elements.data());
  std::vector<float> y(static_cast<size_t>(kTokens) * rows);
  const double seconds = time_loop(state, [&] {
    const GemmJob job{&weights.next(), nullptr, {y.data(), kTokens, static_cast<int>(rows)}, false};
    gemm.run({&job, 1}, elements.data(), {&kTokens, 1});
  });
  count_operations(state, 2.0 * kTokens * static_cast<double>(rows) * static_cast<double>(cols), seconds);
}

const bool registered = [] {
  const auto add = [](const std::string& kind, auto function, ggml_type type, int64_t rows, int64_t cols) {
    const std::string name = fmt::format("{}/{}/{}x{}", kind, ggml_type_name(type), rows, cols);
    return benchmark::RegisterBenchmark(name.c_str(), function, type, rows, cols)->UseRealTime();
  };
  // The MLP of Llama-3-8B.
  for (const ggml_type type : kTypes) {
    add("matvec", matvec, type, 14336, 4096)->ArgName("tokens")->Arg(1)->Arg(4);
    add("gemm512", gemm, type, 14336, 4096);
  }
  // The MLP of SmolLM2-135M, whose products are short.
  add("matvec", matvec, GGML_TYPE_Q4_0, 1536, 576)->ArgName("tokens")->Arg(1);
  add("gemm512", gemm, GGML_TYPE_Q4_0, 1536, 576);
  return true;
}();

}  // namespace
}  // namespace tidal::bench
