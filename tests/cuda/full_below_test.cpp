// Up to where full attention is the faster one on a GPU. Needs no device.
#include "backend/cuda/full_below.h"

#include <gtest/gtest.h>

#include "backend/backend.h"
#include "model/model.h"
#include "model/plan.h"

namespace tidal {
namespace {

Plan sketch(const Hyperparameters& hp, const Policy& policy = sketch_policy(256)) {
  Plan plan = Plan::sketch(hp.layers, 0, policy);
  for (const int layer : default_reuse(hp)) plan.roles[layer] = Role::Sparse;
  return plan;
}

int number(const char* shape, const Policy& policy = sketch_policy(256), KvType type = KvType::Bf16) {
  const Hyperparameters hp = known_shape(shape);
  return cuda::full_below(hp, sketch(hp, policy).roles, policy, type);
}

struct Measured {
  const char* shape;
  int least, most;  ///< 0: the measurements end before
};

// One H200 (docs/performance_cuda.md, "Where sketch attention begins"): the last measured context where sketch
// attention took .5 % more than full, and the first where it took 5 % less; of SmolLM2-1.7B, for which the constants
// know no better, 15 %.
constexpr Measured kMeasured[] = {
    {"llama-2-7b", 4096, 8192}, {"smollm2-1.7b", 0, 16384},     {"llama-3-8b", 8192, 32768},
    {"qwen3-4b", 8192, 32768},  {"llama-3.2-3b", 8192, 32768},  {"qwen3-0.6b", 8192, 16384},
    {"qwen2.5-7b", 16384, 0},   {"llama-3.2-1b", 32768, 65536}, {"smollm2-360m", 16384, 65536},
    {"qwen2.5-1.5b", 0, 65536}, {"smollm2-135m", 32768, 65536}, {"qwen2.5-0.5b", 8192, 65536},
};

TEST(CudaFullBelow, LiesWhereItWasMeasured) {
  for (const Measured& one : kMeasured) {
    EXPECT_GT(number(one.shape), one.least) << one.shape;
    if (one.most > 0) {
      EXPECT_LE(number(one.shape), one.most) << one.shape;
    }
  }
}

/// In 8 bits full attention reads half as much: at 32,768 positions it still took 2 % longer than sketch attention, at
/// 102,400 a fifth (docs/performance_cuda.md, "A cache in 8 bits").
TEST(CudaFullBelow, IsLaterIn8Bits) {
  for (const Measured& one : kMeasured) {
    EXPECT_GT(number(one.shape, sketch_policy(256), KvType::Q8), number(one.shape)) << one.shape;
  }
  EXPECT_LT(number("llama-3-8b", sketch_policy(256), KvType::Q8), 102400);
}

TEST(CudaFullBelow, IsLaterWithALargerBudget) {
  int last = 0;
  for (const int budget : {64, 256, 1024, 4096}) {
    const int from = number("llama-3-8b", sketch_policy(budget));
    EXPECT_GT(from, last);
    last = from;
  }
  Policy share = sketch_policy(64);
  share.budget_share = .05;
  EXPECT_GT(number("llama-3-8b", share), number("llama-3-8b"));
  share.budget_share = .9;
  EXPECT_EQ(number("llama-3-8b", share), 1 << 24) << "never";
  Policy heads = sketch_policy(1024);
  heads.scope = Scope::Head;
  EXPECT_GT(number("llama-3-8b", heads), number("llama-3-8b", sketch_policy(1024)));
}

TEST(CudaFullBelow, PlansThatDoNotScan) {
  const Hyperparameters hp = known_shape("llama-3-8b");
  EXPECT_EQ(cuda::full_below(hp, Plan::full(hp.layers).roles, sketch_policy(256), KvType::Bf16), 0);
  // Layers that reuse a selection are a gain from the start.
  Plan plan = sketch(hp);
  std::fill(plan.roles.begin() + 1, plan.roles.end(), Role::Sparse);
  EXPECT_LT(cuda::full_below(hp, plan.roles, plan.policy, KvType::Bf16), 256);
}

TEST(CudaFullBelow, IsTheBackends) {
  const Hyperparameters hp = known_shape("llama-3-8b");
  const Plan plan = sketch(hp);
  EXPECT_EQ(cuda_full_below(hp, plan.roles, plan.policy, KvType::Bf16), number("llama-3-8b"));
  if (!has_cuda_device()) GTEST_SKIP() << "no CUDA device";
  EXPECT_EQ(make_backend("cuda", 1)->full_below(hp, plan.roles, plan.policy, KvType::Bf16), number("llama-3-8b"));
}

}  // namespace
}  // namespace tidal
