// What is asked of the host for K and V, and what becomes of an engine when the host has no more.
#include <deque>
#include <filesystem>

#include "engine/session_store.h"
#include "support/random.h"
#include "unit/scheduler_setup.h"

namespace tidal {
namespace {

using test::copy;
using test::error_of;
using test::random_tokens;

constexpr const char* kNoMore = "out of memory: the host has no more";

/// What a host is asked for, and what it has.
struct Host {
  int slots = 0;  ///< that there is memory for
  int asked = 0;  ///< for so many
};

/// Memory of another backend, of which the host's part is short.
class ShortKvMemory final : public KvMemory {
 public:
  ShortKvMemory(std::unique_ptr<KvMemory> memory, Host& host)
      : KvMemory(memory->room()), memory_(std::move(memory)), host_(host) {}
  std::byte* layer(size_t index) const override { return memory_->layer(index); }
  void provide(int count) override {
    host_.asked = std::max(host_.asked, count);
    if (count > host_.slots) fail("{}", kNoMore);
    memory_->provide(count);
  }

 private:
  std::unique_ptr<KvMemory> memory_;
  Host& host_;
};

/// The CPU's backend, as if it were a device with memory of its own.
class DeviceBackend final : public Backend {
 public:
  explicit DeviceBackend(Host& host) : host_(host) {}
  int64_t free = std::numeric_limits<int64_t>::max();
  int64_t cached_row_bytes = 0;

  std::string_view name() const override { return "device"; }
  std::string device() const override { return "a device"; }
  int decode_rows() const override { return on_->decode_rows(); }
  int prefill_rows() const override { return on_->prefill_rows(); }
  double read_stream() override { return 1; }
  Buffer allocate(size_t bytes, std::string_view what) override { return on_->allocate(bytes, what); }
  std::unique_ptr<KvMemory> allocate_kv(const KvRoom& room, std::string_view what) override {
    return std::make_unique<ShortKvMemory>(on_->allocate_kv(room, what), host_);
  }
  Weight upload(const Weight& host) override { return on_->upload(host); }
  int64_t free_bytes() const override { return free; }
  int64_t row_cache_bytes(const RowCacheRoom& room) const override { return cached_row_bytes * room.rows; }
  void copy(std::byte* to, const std::byte* from, size_t bytes) override { on_->copy(to, from, bytes); }
  void write(std::byte* to, const std::byte* from, size_t bytes) override { on_->write(to, from, bytes); }
  void read(std::byte* to, const std::byte* from, size_t bytes) override { on_->read(to, from, bytes); }
  void sketch(KvLayer kv, std::span<const BlockId> blocks) override { on_->sketch(kv, blocks); }
  void reserve(const Hyperparameters& hp, int rows, int context) override { on_->reserve(hp, rows, context); }
  void begin(const Hyperparameters& hp, const Batch& batch) override { on_->begin(hp, batch); }
  void embed(const Weight& embedding, const Batch& batch, Rows x) override { on_->embed(embedding, batch, x); }
  void qkv(const Layer& layer, const Batch& batch, Rows x, Rows q, KvLayer kv) override {
    on_->qkv(layer, batch, x, q, kv);
  }
  void attend(const Batch& batch, int layer, Rows q, KvLayer kv, const Selection& selection, Rows out,
              const Weight& sink_logits) override {
    on_->attend(batch, layer, q, kv, selection, out, sink_logits);
  }
  void gate(const Layer& layer, Rows x, Rows out) override { on_->gate(layer, x, out); }
  void project(const Layer& layer, Rows out, Rows x) override { on_->project(layer, out, x); }
  void delta(const Layer& layer, const Batch& batch, int index, Rows x) override { on_->delta(layer, batch, index, x); }
  void mlp(const Layer& layer, Rows x) override { on_->mlp(layer, x); }
  void experts(const Layer& layer, Rows x) override { on_->experts(layer, x); }
  void logits(const Weight& norm, const Weight& output, const Batch& batch, Rows x, std::span<float> out) override {
    on_->logits(norm, output, batch, x, out);
  }

 private:
  std::unique_ptr<Backend> on_ = make_backend("cpu", 2);
  Host& host_;
};

class HostMemory : public testing::Test {
 protected:
  static constexpr int kDeviceBlocks = 6;
  static EngineOptions options() {
    EngineOptions options{.context = 1024, .tokens = 2048, .chunk = 64, .sequences = 2};
    options.device_blocks = kDeviceBlocks;
    return options;
  }
  static Plan sketch(int bits) {
    Plan plan = Plan::sketch(6, 1, sketch_policy(test::kBudget));
    plan.policy.sketch_bits = bits;
    return plan;
  }

  Host host{1000, 0};
  DeviceBackend backend{host};
  Model model = test::random_small_model(test::small_shape(), GGML_TYPE_F32, backend);
  const std::vector<Token> text = random_tokens(1024, 3);

  std::span<const Token> some(int first, int count) const {
    return std::span(text).subspan(static_cast<size_t>(first), static_cast<size_t>(count));
  }
};

TEST_F(HostMemory, IsNotAskedForWhileAllFits) {
  Engine engine(backend, model, test::small_plan(), options());
  Sequence sequence = engine.create();
  engine.prefill(sequence, some(0, kBlockTokens * kDeviceBlocks - 10));
  for (const Token token : some(500, 10)) engine.decode(sequence, token);
  EXPECT_EQ(host.asked, 0);
}

TEST_F(HostMemory, IsAskedForAsBlocksLeave) {
  Engine engine(backend, model, test::small_plan(), options());
  Sequence sequence = engine.create();
  for (int blocks = 1; blocks <= 15; ++blocks) {
    engine.prefill(sequence, some(kBlockTokens * (blocks - 1), kBlockTokens));
    EXPECT_EQ(engine.pool().blocks_on_host(), std::max(0, blocks - kDeviceBlocks));
    EXPECT_EQ(host.asked, engine.pool().blocks_on_host());
  }
  // One leaves for the one that is written, and comes in its place.
  const int before = engine.pool().blocks_on_host();
  sequence.truncate(2 * kBlockTokens + 1);
  Sequence other = engine.create();
  engine.prefill(other, some(0, kBlockTokens * (kDeviceBlocks + 2)));
  engine.decode(sequence, 7);
  EXPECT_FALSE(engine.pool().on_host(sequence.blocks().back()));
  EXPECT_LE(host.asked, before + 1);
}

TEST_F(HostMemory, ThatThereIsNotGivesBackWhatWasTakenForAStoredText) {
  const std::string folder = testing::TempDir() + "tidal_short_host";
  std::filesystem::remove_all(folder);
  Engine engine(backend, model, test::small_plan(), options());
  SessionStore store(engine.pool(), {.directory = folder, .model = 7});
  constexpr int kLength = kBlockTokens * 2 * kDeviceBlocks;
  {
    Sequence sequence = engine.create();
    for (int at = 0; at < kLength; at += kBlockTokens) engine.prefill(sequence, some(at, kBlockTokens));
    store.keep(sequence);
  }
  const Sequence none = engine.create();
  const int all = engine.pool().free_blocks();
  const SessionStore::Found found = store.find(text, kLength, false);
  ASSERT_EQ(found.length, kLength);
  host.slots = 2;
  EXPECT_EQ(error_of([&] { store.load(found, text, none); }), kNoMore);
  EXPECT_EQ(engine.pool().free_blocks(), all);
  host.slots = 1000;
  EXPECT_EQ(store.load(found, text, none).length(), kLength);
  EXPECT_EQ(engine.pool().free_blocks(), all);
  std::filesystem::remove_all(folder);
}

TEST_F(HostMemory, ThatThereIsNotIsOneErrorOfThatStep) {
  host.slots = 3;
  test::SmallEngine whole("cpu", GGML_TYPE_F32, test::small_plan(), {.context = 1024, .tokens = 2048, .chunk = 64});
  Engine engine(backend, model, test::small_plan(), options());
  const int all = engine.pool().free_blocks();
  Sequence sequence = engine.create(), same = whole.engine.create();
  constexpr int kFits = kBlockTokens * (kDeviceBlocks + 3) - 20;
  EXPECT_EQ(copy(engine.prefill(sequence, some(0, kFits))), copy(whole.engine.prefill(same, some(0, kFits))));
  EXPECT_EQ(error_of([&] { engine.prefill(sequence, some(kFits, 60)); }), kNoMore);
  EXPECT_EQ(sequence.length(), kFits) << "nothing of the step that failed";
  EXPECT_EQ(engine.pool().free_blocks(), all - blocks_for(kFits));
  // What needs no more goes on.
  for (const Token token : some(kFits, 20)) {
    EXPECT_EQ(copy(engine.decode(sequence, token)), copy(whole.engine.decode(same, token)));
  }
  EXPECT_EQ(error_of([&] { engine.decode(sequence, 7); }), kNoMore);
  // Where memory is found again, so does all.
  host.slots = 100;
  EXPECT_EQ(copy(engine.decode(sequence, 7)), copy(whole.engine.decode(same, 7)));
  sequence.truncate(0);
  EXPECT_EQ(engine.pool().free_blocks(), all);
}

TEST_F(HostMemory, ThatThereIsNotEndsTheJobsOfThatStep) {
  host.slots = 2;
  Engine engine(backend, model, test::small_plan(), options());
  test::SmallEngine whole("cpu", GGML_TYPE_F32, test::small_plan(), {.context = 1024, .tokens = 2048, .chunk = 64});
  Scheduler scheduler(engine, {});
  std::deque<test::Outcome> outcomes(2);
  const test::JobSetup large{.prompt = random_tokens(900, 1)}, small{.prompt = random_tokens(100, 2), .most = 20};
  test::submit(scheduler, 0, large, outcomes[0]);
  test::run(scheduler);
  EXPECT_EQ(outcomes[0].end, JobEnd::Failed);
  EXPECT_EQ(outcomes[0].report.error, kNoMore);
  test::submit(scheduler, 1, small, outcomes[1]);
  test::run(scheduler);
  EXPECT_EQ(outcomes[1].end, JobEnd::Limit);
  EXPECT_EQ(outcomes[1].text, test::alone(whole.engine, small).first);
  test::expect_all_blocks_back(scheduler, engine);
}

TEST_F(HostMemory, LessOfADeviceHasFewerBlocks) {
  const Hyperparameters& hp = model.hp;
  const EngineOptions options{.context = 1 << 20};
  EngineOptions least = options;
  least.kv_place = {KvPlace::Kind::Bytes, 0};
  const int fewest = engine_sizes(backend, hp, least).device_blocks, all = engine_sizes(backend, hp, options).blocks;
  const int64_t most = engine_memory(backend, hp, sketch(2), options).total();
  const int64_t needed = engine_memory(backend, hp, sketch(2), least).total();
  ASSERT_LT(fewest, all);
  const auto fitting = [&](int64_t free) { return fitting_blocks(backend, hp, sketch(2), options, free); };
  EXPECT_EQ(fitting(most), all);
  EXPECT_EQ(fitting(needed), fewest);
  EXPECT_EQ(fitting(needed - 1), 0);
  for (int64_t free = most, before = all; free >= needed; free -= (most - needed) / 100) {
    const int blocks = fitting(free);
    EXPECT_GE(blocks, fewest);
    EXPECT_LE(blocks, before);
    EngineOptions placed = options;
    placed.device_blocks = blocks;
    EXPECT_LE(engine_memory(backend, hp, sketch(2), placed).total(), free);
    before = blocks;
  }
}

TEST_F(HostMemory, AutoLeavesWhatLaterPlansNeed) {
  EngineOptions options{.context = 1 << 20};
  options.kv_place = {KvPlace::Kind::Auto, 0};
  const Hyperparameters& hp = model.hp;
  const auto blocks = [&](const Plan& plan, const std::vector<Plan>& later) {
    EngineOptions with = options;
    with.later_plans = later;
    return with_device_blocks(backend, hp, plan, with).device_blocks;
  };
  const int all = engine_sizes(backend, hp, options).blocks;
  const int64_t cache = engine_memory(backend, hp, Plan::full(6), options).cache;
  const int64_t narrow = engine_memory(backend, hp, sketch(1), options).sketches;
  const int64_t wide = engine_memory(backend, hp, sketch(4), options).sketches;
  ASSERT_GT(narrow, 0);
  ASSERT_GT(wide, narrow);
  // As much as full attention needs, to the byte.
  backend.free = engine_memory(backend, hp, Plan::full(6), options).total();
  EXPECT_EQ(blocks(Plan::full(6), {}), all);
  const int one = blocks(Plan::full(6), {sketch(4)});
  EXPECT_EQ(one, blocks(sketch(4), {}));
  EXPECT_LT(one, all - wide / (cache / all));
  // All widths stay, whichever plan has its turn.
  const int both = blocks(Plan::full(6), {sketch(4), sketch(1)});
  EXPECT_LE(both, one - narrow / (cache / all));
  EXPECT_EQ(both, blocks(sketch(1), {sketch(4)}));
}

TEST_F(HostMemory, LessOfADeviceCachesFewerRows) {
  const Hyperparameters& hp = model.hp;
  backend.cached_row_bytes = 4096;
  EngineOptions options{.context = 1 << 16};
  options.kv_place = {KvPlace::Kind::Bytes, 0};
  const auto total = [&](const EngineOptions& own) { return engine_memory(backend, hp, sketch(2), own).total(); };
  EngineOptions fewest = options;
  fewest.cached_rows = test::kBudget;
  const int64_t most = total(options), needed = total(fewest);
  ASSERT_LT(needed, most);
  EXPECT_EQ(least_memory(backend, hp, sketch(2), options).total(), needed);
  const auto rows = [&](int64_t free) {
    backend.free = free;
    const EngineOptions placed = with_device_blocks(backend, hp, sketch(2), options);
    if (!options.cached_rows) {
      EXPECT_LE(total(placed), std::max(free, needed));
    }
    return placed.cached_rows;
  };
  EXPECT_EQ(rows(most), std::nullopt) << "as many as there should be";
  EXPECT_EQ(rows(most - 1), 1024) << "half of 2048";
  EXPECT_EQ(rows(needed), test::kBudget);
  EXPECT_EQ(rows(needed - 1), test::kBudget) << "who makes an engine is told";
  options.kv_place = {KvPlace::Kind::Auto, 0};
  EXPECT_EQ(rows(needed), test::kBudget);
  options.cached_rows = 2048;
  EXPECT_EQ(rows(needed), 2048) << "who asks for a number gets it";
}

// What a plan of a request asks, long after the engine has taken the memory.
TEST_F(HostMemory, AutoOfAnEnginesOptionsIsWhatItCameTo) {
  EngineOptions options{.context = 1 << 20};
  options.kv_place = {KvPlace::Kind::Auto, 0};
  backend.free = engine_memory(backend, model.hp, sketch(2), options).total() / 2;
  const EngineOptions placed = with_device_blocks(backend, model.hp, sketch(2), options);
  ASSERT_LT(placed.device_blocks, engine_sizes(backend, model.hp, options).blocks);
  const int positions = positions_on_device(backend, model.hp, sketch(2), placed);
  backend.free = 0;
  EXPECT_EQ(with_device_blocks(backend, model.hp, sketch(2), placed).device_blocks, placed.device_blocks);
  EXPECT_EQ(positions_on_device(backend, model.hp, sketch(2), placed), positions);
}

}  // namespace
}  // namespace tidal
