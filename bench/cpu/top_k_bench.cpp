// Exact top-k of one row's scores, one thread.
#include "backend/cpu/top_k.h"

#include "common.h"

namespace tidal::bench {
namespace {

void top(benchmark::State& state) {
  const int count = static_cast<int>(state.range(0)), k = static_cast<int>(state.range(1));
  const std::vector<float> scores = noise(static_cast<size_t>(count));
  std::vector<int32_t> positions(k);
  for (auto _ : state) {
    top_k(scores.data(), 0, count, k, positions.data());
    benchmark::DoNotOptimize(positions.data());
  }
  state.SetItemsProcessed(state.iterations() * count);
}
BENCHMARK(top)->Name("top_k")->ArgNames({"context", "K"})->ArgsProduct({{2048, 16384, 131072}, {64, 256, 1024}});

}  // namespace
}  // namespace tidal::bench
