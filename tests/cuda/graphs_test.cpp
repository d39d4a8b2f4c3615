// How the backend works changes nothing: with or without CUDA graphs, with or without clusters of blocks, once more.
#include <gtest/gtest.h>

#include "backend/cuda/cuda_backend.h"
#include "support/small_device.h"
#include "unit/engine_setup.h"

namespace tidal::test {
namespace {

class CudaGraphs : public testing::Test {
 protected:
  void SetUp() override {
    if (!has_cuda_device()) GTEST_SKIP() << "no CUDA device";
  }
};

/// A session with everything that makes lists of operations differ: batches that grow and shrink, plans, prefill
/// between decode steps, blocks that fill.
std::vector<float> session(const cuda::Options& options, const Plan& plan, ggml_type type = GGML_TYPE_F32,
                           const Hyperparameters& hp = small_shape()) {
  const auto backend = cuda::make_backend(options);
  const Model model = random_small_model(hp, type, *backend);
  Engine engine(*backend, model, plan, {.context = 512, .tokens = 4096, .chunk = 512, .sequences = 8});
  std::vector<Sequence> sequences;
  std::vector<float> all;
  for (int i = 0; i < 4; ++i) {
    sequences.push_back(engine.create());
    engine.prefill(sequences.back(), random_tokens(20 + 60 * i, i));
  }
  for (int step = 0; step < 80; ++step) {
    const std::vector<Token> token = {step % 97};
    const size_t count = step % 10 == 9 ? 1 : 2 + step / 40 * 2;
    std::vector<Engine::Request> requests;
    for (size_t s = 0; s < count; ++s) {
      requests.push_back({.sequence = &sequences[s], .tokens = token, .decode = true});
    }
    const auto logits = engine.step(requests);
    all.insert(all.end(), logits.begin(), logits.end());
    if (step == 50) engine.prefill(sequences[0], random_tokens(30, 9));
  }
  return all;
}

TEST_F(CudaGraphs, GiveWhatTheirLaunchesGive) {
  Plan scan = Plan::sketch(6, 1, sketch_policy(kBudget));
  Plan crossing = scan;
  crossing.full_below = 130;  // two of the four sequences go over to sketch attention within the session
  for (const ggml_type type : {GGML_TYPE_F32, GGML_TYPE_Q4_1}) {
    for (const Plan& plan : {Plan::full(6), small_plan(), scan, crossing}) {
      const std::vector<float> with = session({}, plan, type);
      EXPECT_EQ(with, session({.graphs = false}, plan, type)) << ggml_type_name(type);
      EXPECT_EQ(with, session({}, plan, type)) << ggml_type_name(type) << ", the same again";
    }
  }
}

TEST_F(CudaGraphs, SmallDevicesGiveTheSame) {
  for (const ggml_type type : {GGML_TYPE_F32, GGML_TYPE_Q4_1}) {
    for (const Plan& plan : {Plan::full(6), Plan::sketch(6, 1, sketch_policy(kBudget))}) {
      const std::vector<float> large = session({}, plan, type);
      const SmallDevice small;
      EXPECT_EQ(session({}, plan, type), large) << ggml_type_name(type);
    }
  }
}

// Tables of layers with a window lie behind those of whole contexts, which grow.
TEST_F(CudaGraphs, StayWhileContextsGrow) {
  const auto captured = [](bool windows) {
    const auto backend = cuda::make_backend();
    Hyperparameters hp = small_shape();
    if (windows) {
      hp.windows.assign(static_cast<size_t>(hp.layers), 70);
      hp.windows.back() = 0;
    }
    const Model model = random_small_model(hp, GGML_TYPE_F32, *backend);
    Engine engine(*backend, model, Plan::full(hp.layers),
                  {.context = 1024, .tokens = 4096, .chunk = 64, .sequences = 2});
    std::vector<Sequence> sequences;
    for (int i = 0; i < 2; ++i) {
      sequences.push_back(engine.create());
      engine.prefill(sequences.back(), random_tokens(200, i));
    }
    const std::vector<Token> token = {1};
    std::vector<Engine::Request> requests;
    for (Sequence& sequence : sequences) requests.push_back({.sequence = &sequence, .tokens = token, .decode = true});
    for (int step = 0; step < 400; ++step) engine.step(requests, 1);
    return cuda::captured_steps(*backend);
  };
  // Of the prompts' ends, of steps that fill a block, and of those that do not.
  EXPECT_LE(captured(false), 3);
  EXPECT_LE(captured(true), 3);
}

// Devices of compute capability 8 have none: the kernels that they take are tested where there are some, too.
TEST_F(CudaGraphs, ClustersSelectWhatTheOthersSelect) {
  for (const Scope scope : {Scope::Head, Scope::Kv, Scope::Shared}) {
    for (const float top_p : {1.0f, 0.8f}) {
      for (Plan plan : {small_plan(), Plan::sketch(6, 1, sketch_policy(kBudget))}) {
        plan.policy.scope = scope;
        plan.policy.top_p = top_p;
        EXPECT_EQ(session({}, plan), session({.clusters = false}, plan)) << to_string(scope) << ", top-p " << top_p;
      }
    }
  }
}

// They have less shared memory, too: none for the ring of the largest sketches, nor for more than a slice of rows.
TEST_F(CudaGraphs, HeadsOf256TheSameWithoutRoomForARing) {
  Hyperparameters hp = small_shape();
  hp.head_dim = 256;
  hp.rope = make_rope(Rope::Pairing::Halves, hp.head_dim, 10000, {}, {});
  for (const int bits : {1, 2, 4}) {
    Plan plan = Plan::sketch(6, 1, sketch_policy(kBudget));
    plan.policy.sketch_bits = bits;
    EXPECT_EQ(session({}, plan, GGML_TYPE_F32, hp), session({.clusters = false}, plan, GGML_TYPE_F32, hp)) << bits;
  }
  for (const Plan& plan : {small_plan(), Plan::full(6)}) {
    EXPECT_EQ(session({}, plan, GGML_TYPE_F32, hp), session({.clusters = false}, plan, GGML_TYPE_F32, hp));
  }
}

}  // namespace
}  // namespace tidal::test
