// Decode attention on a GPU, role by role: first each against plain loops on the host, on small random shapes, then
// microseconds and GB/s over caches larger than the L2, the median of many replays of a CUDA graph of many launches:
//   tidal_bench_cuda_attention [check | time [NAME [CONTEXT]]]   only what begins so (Dense, Scan, ...), at one length
#include <cmath>
#include <cstdio>

#include "attention_fixture.cuh"

namespace {

// --- against plain loops
// ----------------------------------------------------------------------------------------------

struct Plain {
  const Fixture& fixture;
  const Shape& shape;
  std::vector<std::byte> cache;

  const std::byte* tile(int64_t index) const {
    return cache.data() + index * kBlockTokens * KvRowLayout{shape.type, shape.head_dim}.bytes();
  }
  /// The key and, behind it, the value.
  std::vector<float> row(int r, int position, int kv_head) const {
    const KvRowLayout layout{shape.type, shape.head_dim};
    std::vector<float> both(size_t{2} * shape.head_dim);
    read_kv_row(layout, tile(fixture.tile(r, position, kv_head)) + position % kBlockTokens * layout.bytes(),
                both.data(), both.data() + shape.head_dim);
    return both;
  }
  reference::Scores scores(int r, int head, int begin, int end) const {
    reference::Scores result;
    for (int p = begin; p < end; ++p) {
      const std::vector<float> key = row(r, p, head / (shape.heads / shape.kv_heads));
      double sum = 0;
      for (int d = 0; d < shape.head_dim; ++d) sum += double{fixture.q(r, head)[d]} * key[d];
      result.push_back(static_cast<float>(sum));
    }
    return result;
  }
  /// Largest difference of `out` from attention over the positions.
  double difference(int r, int head, const std::vector<int32_t>& positions, const float* out) const {
    const double scale = 1 / std::sqrt(double(shape.head_dim));
    std::vector<double> sum(shape.head_dim, 0.0);
    double total = 0;
    for (const int p : positions) {
      const double weight = std::exp(scores(r, head, p, p + 1)[0] * scale);
      total += weight;
      const std::vector<float> both = row(r, p, head / (shape.heads / shape.kv_heads));
      for (int d = 0; d < shape.head_dim; ++d) sum[d] += weight * both[shape.head_dim + d];
    }
    double largest = 0;
    for (int d = 0; d < shape.head_dim; ++d) largest = std::max(largest, std::abs(sum[d] / total - out[d]));
    return std::isfinite(total) ? largest : INFINITY;
  }
};

int failures = 0;

void report(const std::string& what, double difference, int other_sets, int sets) {
  // Values are within [-1, 1]; weights are rounded to 2^-9 of themselves.
  const bool good = difference < 4e-3 && other_sets * 50 <= sets;
  failures += !good;
  std::printf("%-62s %s: off by %.1e, %d of %d sets differ\n", what.c_str(), good ? "ok" : "WRONG", difference,
              other_sets, sets);
}

void check_role(const Shape& shape, Role role, Scope scope, Pooling pooling, int bits) {
  const std::vector<int> contexts =
      role == Role::Dense ? std::vector<int>{1, 63, 64, 65, 129, 700, 4097} : std::vector<int>{65, 128, 129, 700, 4097};
  Policy policy{scope, pooling, 64, 4, 16};
  Fixture fixture(shape, contexts, 1, policy, bits);
  fixture.select_at_random(1);
  for (int repeat = 0; repeat < 2; ++repeat) fixture.attend(role, 0);  // twice: counters must be 0 again
  fixture.sync();
  const Plain plain{fixture, shape, fixture.cache(0)};
  const std::vector<float> out = fixture.out();
  const int units = fixture.units(), heads = shape.heads / units, group = shape.heads / shape.kv_heads;
  const double scale = 1 / std::sqrt(double(shape.head_dim));
  double largest = 0;
  int other = 0, sets = 0;
  const SketchLayout layout{shape.head_dim, bits};
  const std::vector<std::byte> sketches = fixture.sketches(0);
  if (role == Role::Scan) {
    std::vector<std::byte> own(layout.bytes());
    for (size_t tile = 0; tile * own.size() < sketches.size(); ++tile) {
      sketch_block(layout, shape.type, plain.tile(static_cast<int64_t>(tile)), own.data());
      if (!std::equal(own.begin(), own.end(), sketches.begin() + static_cast<ptrdiff_t>(tile * own.size())))
        largest = 99;
    }
  }
  for (int r = 0; r < fixture.rows(); ++r) {
    std::vector<int32_t> all(contexts[r]);
    std::iota(all.begin(), all.end(), 0);
    for (int unit = 0; unit < units; ++unit) {
      const std::vector<int32_t> chosen = role == Role::Dense ? all : fixture.selected(r, unit);
      if (selects(role)) {
        std::vector<reference::Scores> own;
        for (int h = unit * heads; h < (unit + 1) * heads; ++h) {
          const int filled = role == Role::Scan ? contexts[r] / kBlockTokens * kBlockTokens : 0;
          reference::Scores scores(filled);
          for (int p = 0; p < filled; p += kBlockTokens) {
            sketch_scores(layout, fixture.q(r, h), sketches.data() + fixture.tile(r, p, h / group) * layout.bytes(),
                          scores.data() + p);
          }
          const auto exact = plain.scores(r, h, filled, contexts[r]);
          scores.insert(scores.end(), exact.begin(), exact.end());
          own.push_back(std::move(scores));
        }
        const Policy rule = role == Role::Scan ? scan_policy(policy, contexts[r]) : policy;
        ++sets;
        other += reference::select_positions(own, rule, scale) != chosen;
      }
      for (int h = unit * heads; h < (unit + 1) * heads; ++h) {
        const float* own = out.data() + (static_cast<size_t>(r) * shape.heads + h) * shape.head_dim;
        largest = std::max(largest, plain.difference(r, h, reads_selected(role) ? chosen : all, own));
      }
    }
  }
  const char* roles[] = {"Dense", "Select", "Sparse", "Scan"};
  const char* scopes[] = {"head", "kv", "shared"};
  std::string what = std::string(roles[int(role)]) + " heads " + std::to_string(shape.heads) + "/" +
                     std::to_string(shape.kv_heads) + " dim " + std::to_string(shape.head_dim);
  if (shape.type != KvType::Bf16) what += std::string(" ") + kv_type_name(shape.type);
  if (role != Role::Dense) what += std::string(" ") + scopes[int(scope)];
  if (selects(role)) what += pooling == Pooling::Sum ? " sum" : " max";
  if (role == Role::Scan) what += " bits " + std::to_string(bits);
  report(what, largest, other, sets);
}

void check_roles() {
  const Shape shapes[] = {{"", 3, 3, 64},
                          {"", 8, 2, 128},
                          {"", 14, 2, 64},
                          {"", 20, 1, 96},
                          {"", 2, 1, 256},
                          {"", 4, 2, 80},
                          {"", 2, 2, 16},
                          {"", 4, 2, 48},
                          {"", 4, 2, 112},
                          {"", 4, 1, 32},
                          {"", 4, 2, 160},
                          {"", 2, 1, 192},
                          {"", 14, 2, 64, KvType::Q8},
                          {"", 8, 2, 128, KvType::Q8},
                          {"", 4, 2, 80, KvType::Q8},
                          {"", 2, 1, 256, KvType::Q8},
                          {"", 4, 2, 112, KvType::Q8},
                          {"", 2, 2, 16, KvType::Q8}};
  for (const Shape& shape : shapes) {
    check_role(shape, Role::Dense, Scope::Kv, Pooling::Sum, 2);
    for (const Scope scope : {Scope::Head, Scope::Kv, Scope::Shared}) {
      check_role(shape, Role::Sparse, scope, Pooling::Sum, 2);
      for (const Pooling pooling : {Pooling::Max, Pooling::Sum}) {
        if (scope == Scope::Head && pooling == Pooling::Sum) continue;
        check_role(shape, Role::Select, scope, pooling, 2);
        for (const int bits : kSketchBits) check_role(shape, Role::Scan, scope, pooling, bits);
      }
    }
  }
}

// --- time
// -------------------------------------------------------------------------------------------------------------

/// Microseconds of one of `count` launches in a graph: the median of many replays.
template <typename Launch>
double microseconds(cudaStream_t stream, int count, Launch launch) {
  launch(0);
  check(cudaStreamSynchronize(stream), "warm up");
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  for (int i = 0; i < count; ++i) launch(i);
  cudaGraph_t captured;
  check(cudaStreamEndCapture(stream, &captured), "capture");
  const cuda::Graph graph(captured);
  cudaGraphExec_t instance;
  check(cudaGraphInstantiate(&instance, graph, 0), "capture");
  const cuda::GraphExec exec(instance);
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin), "event"), check(cudaEventCreate(&end), "event");
  std::vector<double> times;
  for (int i = 0; i < 23; ++i) {
    check(cudaEventRecord(begin, stream), "event");
    check(cudaGraphLaunch(exec, stream), "replay");
    check(cudaEventRecord(end, stream), "event");
    check(cudaEventSynchronize(end), "replay");
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, begin, end), "event");
    if (i >= 3) times.push_back(1e3 * milliseconds / count);
  }
  cudaEventDestroy(begin), cudaEventDestroy(end);
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

void time_roles(const Shape& shape, int context, int batch, const std::string& only) {
  const auto row =
      static_cast<double>(KvRowLayout{shape.type, shape.head_dim}.bytes());  // bytes of K and V of a position and head
  const double dense = row * shape.kv_heads * context * batch;
  const size_t room = std::min<size_t>(cuda::free_device_memory() * 8 / 10, size_t{56} << 30);
  const int layers = std::clamp(static_cast<int>(room / (dense * 1.1)), 1, 32);
  const std::vector<int> contexts(batch, context);
  const auto line = [&](const std::string& what, double us, double bytes) {
    std::printf("%-12s %6d x %-2d %-22s %9.2f us %8.0f GB/s  (%.1f MB, %d layers)\n", shape.name, context, batch,
                what.c_str(), us, bytes / us * 1e-3, bytes * 1e-6, layers);
    std::fflush(stdout);
  };
  const int launches = std::max(layers, 32);
  const auto time = [&](Fixture& fixture, Role role, const std::string& what, double bytes, bool early = false) {
    if (what.rfind(only, 0) != 0) return;
    line(what, microseconds(fixture.stream(), launches, [&](int i) { fixture.attend(role, i % layers, i % 8, early); }),
         bytes);
  };
  {
    Fixture fixture(shape, contexts, layers, Policy{Scope::Kv, Pooling::Sum, 256, 4, 64}, 2);
    fixture.select_at_random(8);
    time(fixture, Role::Dense, "Dense", dense);
    time(fixture, Role::Dense, "Dense, reading early", dense, true);
    time(fixture, Role::Sparse, "Sparse kv 256", row * shape.kv_heads * 256 * batch);
    time(fixture, Role::Sparse, "Sparse kv 256, early", row * shape.kv_heads * 256 * batch, true);
    time(fixture, Role::Select, "Select kv sum 256", dense);
    const SketchLayout layout{shape.head_dim, 2};
    const int filled = context / kBlockTokens;
    time(fixture, Role::Scan, "Scan kv sum 256 2 bits",
         double(layout.bytes()) * filled * shape.kv_heads * batch +
             row * shape.kv_heads * (256 + context % kBlockTokens) * batch);
  }
  {
    Fixture fixture(shape, contexts, layers, Policy{Scope::Kv, Pooling::Sum, 1024, 4, 256}, 2);
    fixture.select_at_random(8);
    time(fixture, Role::Sparse, "Sparse kv 1024", row * shape.kv_heads * 1024 * batch);
  }
  for (const Scope scope : {Scope::Shared, Scope::Head}) {
    Fixture fixture(shape, contexts, layers, Policy{scope, Pooling::Sum, 256, 4, 64}, 2);
    fixture.select_at_random(8);
    const char* name = scope == Scope::Head ? "head" : "shared";
    time(fixture, Role::Select, std::string("Select ") + name + " sum 256", dense);
    time(fixture, Role::Sparse, std::string("Sparse ") + name + " 256",
         row * (scope == Scope::Head ? shape.heads : shape.kv_heads) * 256 * batch);
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    cuda::open_device();
    const std::string what = argc > 1 ? argv[1] : "all", only = argc > 2 ? argv[2] : "";
    if (what == "check" || what == "all") check_roles();
    if (failures) return std::printf("%d roles are wrong\n", failures), 1;
    if (what != "time" && what != "all") return 0;
    for (const Shape& shape : {Shape{"LLaMA-2-7B", 32, 32, 128}, Shape{"Llama-3-8B", 32, 8, 128},
                               Shape{"the same q8_0", 32, 8, 128, KvType::Q8}}) {
      for (const int context : {10240, 32768, 102400}) {
        if (argc <= 3 || context == std::atoi(argv[3])) time_roles(shape, context, 1, only);
      }
      if (argc <= 3) time_roles(shape, 32768, 16, only);
    }
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
