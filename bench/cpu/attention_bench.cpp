// Attention: Dense, Select, Sparse and Scan rows of decoding over a cold cache, and causal prefill.
#include <algorithm>
#include <numeric>
#include <random>

#include "backend/cpu/scan_blocks.h"
#include "common.h"
#include "engine/kv_pool.h"
#include "model/model.h"
#include "model/plan.h"

namespace tidal::bench {
namespace {

// 9/3 heads of 64, 14/2 of 64, 32/8 of 128.
constexpr const char* kShapes[] = {"smollm2-135m", "qwen2.5-0.5b", "llama-3-8b"};

/// The K/V of one sequence in as many layers as it takes to fill cold_bytes(), each read in turn, and a batch of its
/// last `rows` tokens.
class Cache {
 public:
  Cache(const char* shape, int context, int rows = 1, KvType type = KvType::Bf16)
      : hp_(known_shape(shape)), context_(context) {
    const int64_t layer = hp_.kv_bytes_per_token(type) / hp_.layers * blocks_for(context) * kBlockTokens;
    hp_.layers = static_cast<int>((static_cast<int64_t>(cold_bytes()) + layer - 1) / layer);
    pool_ = std::make_unique<KvPool>(backend(), hp_, blocks_for(context), 0, 0, type);
    for (const KvLayer& kv : pool_->layers()) {
      fill(kv);
    }
    blocks_.resize(pool_->blocks());
    std::iota(blocks_.begin(), blocks_.end(), 0);
    tokens_.resize(rows);
    positions_.resize(rows);
    std::iota(positions_.begin(), positions_.end(), context - rows);
    chunk_ = {.first_row = 0, .rows = rows, .position = context - rows, .blocks = blocks_, .roles = {}, .policy = {}};
    q_ = noise(static_cast<size_t>(rows) * hp_.q_width());
    out_.resize(q_.size());
    backend().reserve(hp_, rows, context);
    backend().begin(hp_, batch());
  }

  const Hyperparameters& hp() const { return hp_; }
  int context() const { return context_; }
  int layers() const { return hp_.layers; }
  /// Layer 0 of the decode step is of this role.
  void set_role(Role role, const Policy& policy) {
    role_ = role;
    chunk_.roles = {&role_, 1};
    chunk_.policy = policy;
  }
  Batch batch() const { return {tokens_, positions_, {&chunk_, 1}, {}}; }
  Rows q() { return {q_.data(), chunk_.rows, hp_.q_width()}; }
  Rows out() { return {out_.data(), chunk_.rows, hp_.q_width()}; }
  /// Sketches the keys of every full block.
  void keep_sketches(int bits) {
    pool_->keep_sketches(bits);
    for (const KvLayer& kv : pool_->layers()) {
      backend().sketch(kv, std::span(blocks_).first(static_cast<size_t>(context_ / kBlockTokens)));
    }
  }
  const std::vector<BlockId>& blocks() const { return blocks_; }
  const KvLayer& layer(size_t index) const { return pool_->layers()[index % pool_->layers().size()]; }
  /// Bytes of K and V of one position in one layer.
  int64_t row_bytes() const { return hp_.kv(0).row_bytes(pool_->type()); }

 private:
  void fill(const KvLayer& kv) const {
    const size_t bytes = static_cast<size_t>(kv.tile_bytes()) * kv.kv_heads * pool_->blocks();
    if (kv.type == KvType::Bf16) return fill_noise(reinterpret_cast<Bf16*>(kv.data), bytes / sizeof(Bf16));
    const std::vector<float> elements = noise(size_t{2} * kBlockTokens * kv.head_dim);
    std::vector<std::byte> tile(static_cast<size_t>(kv.tile_bytes()));
    for (int p = 0; p < kBlockTokens; ++p) {
      const float* const key = elements.data() + static_cast<ptrdiff_t>(p) * 2 * kv.head_dim;
      write_kv_row(kv.row_layout(), key, key + kv.head_dim, tile.data() + p * kv.row_bytes());
    }
    for (size_t at = 0; at < bytes; at += tile.size()) std::copy(tile.begin(), tile.end(), kv.data + at);
  }

  Hyperparameters hp_;
  int context_;
  std::unique_ptr<KvPool> pool_;
  std::vector<BlockId> blocks_;
  std::vector<Token> tokens_;
  std::vector<int32_t> positions_;
  Chunk chunk_;
  Role role_ = Role::Dense;
  std::vector<float> q_, out_;
};

void dense(benchmark::State& state, const char* shape, KvType type) {
  Cache cache(shape, static_cast<int>(state.range(0)), 1, type);
  size_t i = 0;
  const double seconds =
      time_loop(state, [&] { backend().attend(cache.batch(), 0, cache.q(), cache.layer(i++), {}, cache.out()); });
  count_bytes(state, static_cast<double>(cache.row_bytes() * cache.context()), seconds);
}

void select(benchmark::State& state, const char* shape, const Policy& policy) {
  Cache cache(shape, static_cast<int>(state.range(0)));
  cache.set_role(Role::Select, policy);
  const int units = scope_units(policy.scope, cache.hp().heads, cache.hp().kv_heads);
  std::vector<int32_t> positions(static_cast<size_t>(units) * most_selected(policy)), counts(units);
  const Selection selection{positions.data(), counts.data(), units * most_selected(policy), units};
  size_t i = 0;
  const double seconds = time_loop(
      state, [&] { backend().attend(cache.batch(), 0, cache.q(), cache.layer(i++), selection, cache.out()); });
  count_bytes(state, static_cast<double>(cache.row_bytes() * cache.context()), seconds);
}

/// Bytes of the sketches of all full blocks in one layer.
int64_t sketch_bytes(const Cache& cache, int bits) {
  return SketchLayout{cache.hp().head_dim, bits}.bytes() * cache.hp().kv_heads * (cache.context() / kBlockTokens);
}

void scan(benchmark::State& state, const char* shape, const Policy& policy) {
  Cache cache(shape, static_cast<int>(state.range(0)));
  cache.keep_sketches(policy.sketch_bits);
  cache.set_role(Role::Scan, policy);
  const int units = scope_units(policy.scope, cache.hp().heads, cache.hp().kv_heads);
  std::vector<int32_t> positions(static_cast<size_t>(units) * most_selected(policy)), counts(units);
  const Selection selection{positions.data(), counts.data(), units * most_selected(policy), units};
  size_t i = 0;
  const double seconds = time_loop(
      state, [&] { backend().attend(cache.batch(), 0, cache.q(), cache.layer(i++), selection, cache.out()); });
  const int64_t selected = cache.row_bytes() * scan_policy(policy, cache.context()).budget;
  count_bytes(state, static_cast<double>(sketch_bytes(cache, policy.sketch_bits) + selected), seconds);
}

/// The scores of a Scan layer alone: tasks as long as its pieces.
void scores(benchmark::State& state, const char* shape) {
  constexpr int kPiece = 16;  // blocks
  const int context = static_cast<int>(state.range(0)), bits = static_cast<int>(state.range(1));
  Cache cache(shape, context);
  cache.keep_sketches(bits);
  const Hyperparameters& hp = cache.hp();
  const SketchLayout layout{hp.head_dim, bits};
  const int blocks = context / kBlockTokens, pieces = (blocks + kPiece - 1) / kPiece;
  std::vector<float> to(static_cast<size_t>(hp.heads) * context);
  std::vector<std::vector<const std::byte*>> sketches;  // [layer * kv_head], of all blocks
  for (int l = 0; l < cache.layers(); ++l) {
    for (int h = 0; h < hp.kv_heads; ++h) {
      std::vector<const std::byte*>& own = sketches.emplace_back();
      for (int b = 0; b < blocks; ++b) own.push_back(cache.layer(l).sketch(bits, cache.blocks()[b], h));
    }
  }
  size_t layer = 0;
  const double seconds = time_loop(state, [&] {
#pragma omp parallel for schedule(static) num_threads(threads())
    for (int task = 0; task < pieces * hp.kv_heads; ++task) {
      const int begin = task % pieces * kPiece, head = task / pieces,
                after = std::min(8, std::max(0, blocks - begin - kPiece));
      scan_blocks({cache.q().row(0) + static_cast<int64_t>(head) * hp.group() * hp.head_dim, hp.group(), layout,
                   sketches[layer * hp.kv_heads + head].data() + begin, std::min(kPiece, blocks - begin), after,
                   to.data() + static_cast<int64_t>(head) * hp.group() * context + begin * kBlockTokens, context});
    }
    layer = (layer + 1) % cache.layers();
  });
  count_bytes(state, static_cast<double>(sketch_bytes(cache, bits)), seconds);
}

/// Random sets of `budget` positions. Those of one layer share no position, and each layer has had its turn before the
/// next set of a layer is used: a row is in no processor cache when it is read.
std::vector<int32_t> random_sets(const Cache& cache, int budget, int& sets) {
  std::vector<int32_t> order(cache.context());
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), std::mt19937(1));
  const int per_layer = cache.context() / budget;
  for (int s = 0; s < per_layer; ++s) std::sort(order.begin() + s * budget, order.begin() + (s + 1) * budget);
  sets = per_layer * cache.layers();
  std::vector<int32_t> all;
  for (int s = 0; s < sets; ++s) {
    const auto first = order.begin() + s / cache.layers() * budget;
    all.insert(all.end(), first, first + budget);
  }
  return all;
}

void sparse(benchmark::State& state, const char* shape, KvType type) {
  const int budget = static_cast<int>(state.range(1));
  Cache cache(shape, static_cast<int>(state.range(0)), 1, type);
  cache.set_role(Role::Sparse, default_policy(budget));
  int sets = 0;
  std::vector<int32_t> positions = random_sets(cache, budget, sets);
  int32_t count = budget;
  Selection selection{nullptr, &count, most_selected(default_policy(budget)), 1};
  size_t i = 0;
  const double seconds = time_loop(state, [&] {
    selection.positions = positions.data() + i % sets * budget;
    backend().attend(cache.batch(), 0, cache.q(), cache.layer(i++), selection, cache.out());
  });
  count_bytes(state, static_cast<double>(cache.row_bytes() * budget), seconds);
}

void prefill(benchmark::State& state, const char* shape, KvType type) {
  constexpr int kRows = 512;
  const int depth = static_cast<int>(state.range(0));
  Cache cache(shape, depth + kRows, kRows, type);
  size_t i = 0;
  const double seconds =
      time_loop(state, [&] { backend().attend(cache.batch(), 0, cache.q(), cache.layer(i++), {}, cache.out()); });
  // q.k and weights.v of the causal half alone, two operations a product.
  const double positions = kRows * (depth + (kRows + 1) / 2.0);
  count_operations(state, 4.0 * positions * cache.hp().q_width(), seconds);
}

const bool registered = [] {
  for (const char* shape : kShapes) {
    const auto add = [&](const char* kind, auto function, auto... arguments) {
      const std::string name = std::string(kind) + "/" + shape;
      return benchmark::RegisterBenchmark(name.c_str(), function, shape, arguments...)->UseRealTime();
    };
    add("dense", dense, KvType::Bf16)->ArgName("context")->Arg(16384);
    add("dense_q8", dense, KvType::Q8)->ArgName("context")->Arg(16384);
    add("select", select, default_policy(256))->ArgName("context")->Arg(16384);
    add("select_paper", select, paper_policy(256))->ArgName("context")->Arg(16384);
    add("sparse", sparse, KvType::Bf16)
        ->ArgNames({"context", "K"})
        ->ArgsProduct({{2048, 4096, 8192, 16384, 32768}, {64, 256, 1024}});
    add("sparse_q8", sparse, KvType::Q8)->ArgNames({"context", "K"})->ArgsProduct({{16384, 32768}, {64, 256, 1024}});
    add("scan", scan, sketch_policy(256))->ArgName("context")->Arg(8192)->Arg(16384)->Arg(32768);
    add("scan_blocks", scores)->ArgNames({"context", "bits"})->ArgsProduct({{16384}, {1, 2, 4}});
    add("prefill_attention", prefill, KvType::Bf16)->ArgName("depth")->Arg(0)->Arg(4096)->Arg(16384);
    add("prefill_attention_q8", prefill, KvType::Q8)->ArgName("depth")->Arg(0)->Arg(16384);
  }
  return true;
}();

}  // namespace
}  // namespace tidal::bench
