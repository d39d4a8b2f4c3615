// Decode attention on a GPU, role by role: first each against plain loops on the host, on small random shapes, then
// microseconds and GB/s over caches larger than the L2, the median of many replays of a CUDA graph of many launches.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "backend/cuda/attention.h"
#include "backend/cuda/device.h"
#include "backend/cuda/error.h"
#include "backend/reference/select.h"

namespace {

using namespace tidal;
using cuda::allocate_device;
using cuda::check;

__global__ void fill_kernel(uint16_t* to, int64_t count, uint32_t seed) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count; i += int64_t{gridDim.x} * blockDim.x) {
    uint32_t x = static_cast<uint32_t>(i) * 2654435761u ^ static_cast<uint32_t>(i >> 32) ^ seed;
    x ^= x >> 16, x *= 0x85ebca6bu, x ^= x >> 13, x *= 0xc2b2ae35u, x ^= x >> 16;
    // Uniform in [-1, 1].
    const float value = static_cast<float>(static_cast<int>(x)) * 0x1p-31f;
    to[i] = static_cast<uint16_t>(__float_as_uint(value) >> 16);
  }
}

template <typename T>
Buffer upload(const std::vector<T>& host) {
  Buffer buffer = allocate_device(sizeof(T) * host.size(), "a benchmark");
  check(cudaMemcpy(buffer.as<T>(), host.data(), sizeof(T) * host.size(), cudaMemcpyHostToDevice), "upload");
  return buffer;
}

template <typename T>
std::vector<T> download(const void* from, size_t count) {
  std::vector<T> host(count);
  check(cudaMemcpy(host.data(), from, sizeof(T) * count, cudaMemcpyDeviceToHost), "download");
  return host;
}

struct Shape {
  const char* name;
  int heads, kv_heads, head_dim;
};

Hyperparameters hyperparameters(const Shape& shape) {
  Hyperparameters hp;
  hp.heads = shape.heads, hp.kv_heads = shape.kv_heads, hp.head_dim = shape.head_dim;
  return hp;
}

/// Single rows of sequences at one context each, their blocks in random order, and layers of cache for them.
class Fixture {
 public:
  Fixture(const Shape& shape, const std::vector<int>& contexts, int layers, const Policy& policy, int bits)
      : shape_(shape), contexts_(contexts), policy_(policy), bits_(bits), stream_(cuda::make_stream()) {
    const int rows = static_cast<int>(contexts.size());
    int total = 0;
    for (const int context : contexts) total += blocks_for(context);
    blocks_.resize(total);
    std::iota(blocks_.begin(), blocks_.end(), 0);
    std::shuffle(blocks_.begin(), blocks_.end(), random_);
    std::vector<int32_t> positions, row_chunk;
    std::vector<cuda::DeviceChunk> chunks;
    for (int r = 0, table = 0; r < rows; ++r) {
      positions.push_back(contexts[r] - 1);
      row_chunk.push_back(r);
      tables_.push_back(table);
      chunks.push_back({r, 1, contexts[r] - 1, contexts[r], table, policy.budget, policy.sinks, policy.recent,
                        static_cast<float>(policy.top_p)});
      table += blocks_for(contexts[r]);
    }
    device_positions_ = upload(positions), device_row_chunk_ = upload(row_chunk);
    device_blocks_ = upload(blocks_), device_chunks_ = upload(chunks);
    const int64_t elements = int64_t{total} * shape.kv_heads * 2 * kBlockTokens * shape.head_dim;
    const SketchLayout layout{shape.head_dim, bits};
    for (int l = 0; l < layers; ++l) {
      caches_.push_back(allocate_device(sizeof(Bf16) * elements, "a cache"));
      fill_kernel<<<1024, 256>>>(caches_.back().as<uint16_t>(), elements, l * 7919 + 1);
      sketches_.push_back(allocate_device(layout.bytes() * shape.kv_heads * total, "sketches"));
    }
    check(cudaDeviceSynchronize(), "fill");
    for (int l = 0; l < layers; ++l) {
      cuda::launch_sketch_blocks(kv(l), device_blocks_.as<BlockId>(), total, stream_);
    }
    std::normal_distribution<float> normal(0, 1.7f);
    q_.resize(static_cast<size_t>(rows) * shape.heads * shape.head_dim);
    for (float& value : q_) value = normal(random_);
    device_q_ = upload(q_), device_out_ = upload(q_);
    attention_.reserve(hyperparameters(shape), rows, *std::max_element(contexts.begin(), contexts.end()));
    sync();
  }

  int rows() const { return static_cast<int>(contexts_.size()); }
  int width() const { return shape_.heads * shape_.head_dim; }
  int units() const { return scope_units(policy_.scope, shape_.heads, shape_.kv_heads); }
  int stride() const { return most_selected(policy_); }
  cudaStream_t stream() const { return stream_; }
  void sync() { check(cudaStreamSynchronize(stream_), "run"); }

  KvLayer kv(int layer) const {
    KvLayer kv{caches_[layer].as<Bf16>(), shape_.kv_heads, shape_.head_dim, {}};
    kv.sketches[bits_ / 2] = sketches_[layer].as<std::byte>();
    return kv;
  }

  /// New sets of random positions, so many of them.
  void select_at_random(int sets) {
    selections_.clear(), counts_.clear();
    for (int s = 0; s < sets; ++s) {
      std::vector<int32_t> positions(static_cast<size_t>(rows()) * units() * stride(), -1);
      for (int r = 0; r < rows(); ++r) {
        for (int u = 0; u < units(); ++u) {
          // One in each of `budget` equal ranges: different, ascending.
          for (int i = 0; i < policy_.budget; ++i) {
            const auto low = int64_t{contexts_[r]} * i / policy_.budget;
            const auto high = int64_t{contexts_[r]} * (i + 1) / policy_.budget - 1;
            positions[(static_cast<size_t>(r) * units() + u) * stride() + i] =
                static_cast<int32_t>(std::uniform_int_distribution<int64_t>(low, high)(random_));
          }
        }
      }
      selections_.push_back(upload(positions));
      counts_.push_back(upload(std::vector<int32_t>(static_cast<size_t>(rows()) * units(), policy_.budget)));
    }
  }

  void attend(Role role, int layer, int set = 0) {
    cuda::AttendParams params;
    params.tables = {nullptr,
                     device_positions_.as<int32_t>(),
                     device_row_chunk_.as<int32_t>(),
                     device_blocks_.as<int32_t>(),
                     device_chunks_.as<cuda::DeviceChunk>(),
                     nullptr};
    params.rows = rows();
    params.role = role;
    params.scope = policy_.scope, params.pooling = policy_.pooling, params.sketch_bits = bits_;
    params.q = {device_q_.as<float>(), rows(), width()};
    params.out = {device_out_.as<float>(), rows(), width()};
    params.kv = kv(layer);
    if (role != Role::Dense) {
      params.selection = {selections_[set].as<int32_t>(), counts_[set].as<int32_t>(), units() * stride(), units()};
    }
    attention_.attend(params, stream_);
  }

  const float* q(int row, int head) const {
    return &q_[(static_cast<size_t>(row) * shape_.heads + head) * shape_.head_dim];
  }
  std::vector<float> out() const { return download<float>(device_out_.as<float>(), q_.size()); }
  std::vector<Bf16> cache(int layer) const {
    return download<Bf16>(caches_[layer].as<Bf16>(), caches_[layer].bytes() / sizeof(Bf16));
  }
  std::vector<std::byte> sketches(int layer) const {
    return download<std::byte>(sketches_[layer].as<std::byte>(), sketches_[layer].bytes());
  }
  std::vector<int32_t> selected(int row, int unit) const {
    const auto all = download<int32_t>(selections_[0].as<int32_t>(), selections_[0].bytes() / sizeof(int32_t));
    const auto counts = download<int32_t>(counts_[0].as<int32_t>(), counts_[0].bytes() / sizeof(int32_t));
    const int32_t* first = all.data() + (static_cast<size_t>(row) * units() + unit) * stride();
    return {first, first + counts[row * units() + unit]};
  }
  int64_t tile(int row, int position, int kv_head) const {
    return int64_t{blocks_[tables_[row] + position / kBlockTokens]} * shape_.kv_heads + kv_head;
  }

 private:
  Shape shape_;
  std::vector<int> contexts_, tables_;
  Policy policy_;
  int bits_;
  std::mt19937 random_{7};
  std::vector<int32_t> blocks_;
  std::vector<float> q_;
  Buffer device_positions_, device_row_chunk_, device_blocks_, device_chunks_, device_q_, device_out_;
  std::vector<Buffer> caches_, sketches_, selections_, counts_;
  cuda::Stream stream_;
  cuda::DecodeAttention attention_;
};

// --- against plain loops
// ----------------------------------------------------------------------------------------------

struct Plain {
  const Fixture& fixture;
  const Shape& shape;
  std::vector<Bf16> cache;

  const Bf16* row(int r, int position, int kv_head) const {
    return &cache[(fixture.tile(r, position, kv_head) * kBlockTokens + position % kBlockTokens) * 2 * shape.head_dim];
  }
  reference::Scores scores(int r, int head, int begin, int end) const {
    reference::Scores result;
    for (int p = begin; p < end; ++p) {
      const Bf16* key = row(r, p, head / (shape.heads / shape.kv_heads));
      double sum = 0;
      for (int d = 0; d < shape.head_dim; ++d) sum += double{fixture.q(r, head)[d]} * to_float(key[d]);
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
      const Bf16* value = row(r, p, head / (shape.heads / shape.kv_heads)) + shape.head_dim;
      for (int d = 0; d < shape.head_dim; ++d) sum[d] += weight * to_float(value[d]);
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
      sketch_block(layout, plain.cache.data() + tile * 2 * kBlockTokens * shape.head_dim, own.data());
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
  if (role != Role::Dense) what += std::string(" ") + scopes[int(scope)];
  if (selects(role)) what += pooling == Pooling::Sum ? " sum" : " max";
  if (role == Role::Scan) what += " bits " + std::to_string(bits);
  report(what, largest, other, sets);
}

void check_roles() {
  const Shape shapes[] = {{"", 3, 3, 64},  {"", 8, 2, 128}, {"", 14, 2, 64}, {"", 20, 1, 96},
                          {"", 2, 1, 256}, {"", 4, 2, 80},  {"", 2, 2, 16},  {"", 4, 2, 48},
                          {"", 4, 2, 112}, {"", 4, 1, 32},  {"", 4, 2, 160}, {"", 2, 1, 192}};
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

void time_roles(const Shape& shape, int context, int batch) {
  const double row = 4.0 * shape.head_dim;  // bytes of K and V of a position and head
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
  const auto time = [&](Fixture& fixture, Role role, const std::string& what, double bytes) {
    line(what, microseconds(fixture.stream(), launches, [&](int i) { fixture.attend(role, i % layers, i % 8); }),
         bytes);
  };
  {
    Fixture fixture(shape, contexts, layers, Policy{Scope::Kv, Pooling::Sum, 256, 4, 64}, 2);
    fixture.select_at_random(8);
    time(fixture, Role::Dense, "Dense", dense);
    time(fixture, Role::Sparse, "Sparse kv 256", row * shape.kv_heads * 256 * batch);
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
    const std::string what = argc > 1 ? argv[1] : "all";
    if (what == "check" || what == "all") check_roles();
    if (failures) return std::printf("%d roles are wrong\n", failures), 1;
    if (what != "time" && what != "all") return 0;
    for (const Shape& shape : {Shape{"LLaMA-2-7B", 32, 32, 128}, Shape{"Llama-3-8B", 32, 8, 128}}) {
      for (const int context : {10240, 32768, 102400}) time_roles(shape, context, 1);
      time_roles(shape, 32768, 16);
    }
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
