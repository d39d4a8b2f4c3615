#include <benchmark/benchmark.h>
#include <fmt/core.h>

#include <exception>

#include "common.h"

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  try {
    benchmark::AddCustomContext("threads", fmt::format("{}", tidal::bench::threads()));
    benchmark::AddCustomContext("read stream", fmt::format("{:.1f} GB/s", tidal::bench::read_stream()));
    benchmark::RunSpecifiedBenchmarks();
  } catch (const std::exception& error) {
    fmt::print(stderr, "tidal_bench_kernels: {}\n", error.what());
    return 1;
  }
  benchmark::Shutdown();
  return 0;
}
