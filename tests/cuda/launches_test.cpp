// How many kernels a layer of a decode step is.
#include <gtest/gtest.h>

#include <functional>

#include "backend/cuda/cuda_backend.h"
#include "unit/engine_setup.h"

namespace tidal::test {
namespace {

class CudaLaunches : public testing::Test {
 protected:
  void SetUp() override {
    if (!has_cuda_device()) GTEST_SKIP() << "no CUDA device";
  }

  /// Kernels of a step of so many sequences.
  static int kernels(const Plan& plan, ggml_type type, int sequences) {
    const auto backend = cuda::make_backend();
    Hyperparameters hp = small_shape(static_cast<int>(plan.roles.size()));
    hp.head_dim = 128;  // as most models have
    hp.rope = make_rope(Rope::Pairing::Halves, hp.head_dim, 10000, {}, {});
    const Model model = random_small_model(hp, type, *backend);
    Engine engine(*backend, model, plan, {.context = 512, .tokens = 4096, .chunk = 512, .sequences = 8});
    std::vector<Sequence> all;
    std::vector<Engine::Request> requests;
    const std::vector<Token> token = {1};
    for (int s = 0; s < sequences; ++s) {
      all.push_back(engine.create());
      engine.prefill(all.back(), random_tokens(100, s));
    }
    for (Sequence& sequence : all) requests.push_back({.sequence = &sequence, .tokens = token, .decode = true});
    // A step runs, is captured, and replayed.
    for (int step = 0; step < 3; ++step) engine.step(requests, 1);
    return cuda::kernels_of_a_step(*backend);
  }

  /// Kernels that every further layer of a role takes.
  static double of_a_layer(const std::function<Plan(int layers)>& plan, ggml_type type, int sequences) {
    return (kernels(plan(12), type, sequences) - kernels(plan(6), type, sequences)) / 6.0;
  }
};

TEST_F(CudaLaunches, OfALayer) {
  struct Case {
    const char* name;
    std::function<Plan(int)> plan;
    double alone, of_eight, of_eight_quantised;  ///< at most
  };
  const Case cases[] = {
      {"full", [](int layers) { return Plan::full(layers); }, 5, 6, 9},
      {"tidal", [](int layers) { return Plan::tidal(layers, 4, default_policy(kBudget)); }, 5, 6, 9},
      {"sketch", [](int layers) { return Plan::sketch(layers, 1, sketch_policy(kBudget)); }, 6, 7, 10},
  };
  for (const Case& one : cases) {
    const auto check = [&](ggml_type type, int sequences, double most) {
      const double found = of_a_layer(one.plan, type, sequences);
      std::printf("%s attention, %s, batch %d: %.1f kernels a layer\n", one.name, ggml_type_name(type), sequences,
                  found);
      EXPECT_GT(found, 0);
      EXPECT_LE(found, most) << one.name << ", " << ggml_type_name(type) << ", batch " << sequences;
    };
    check(GGML_TYPE_BF16, 1, one.alone);
    check(GGML_TYPE_BF16, 8, one.of_eight);
    check(GGML_TYPE_Q4_0, 1, one.alone);
    check(GGML_TYPE_Q4_0, 8, one.of_eight_quantised);
  }
}

TEST_F(CudaLaunches, BesideTheLayersAreFew) {
  const int six = kernels(Plan::full(6), GGML_TYPE_Q4_0, 1), twelve = kernels(Plan::full(12), GGML_TYPE_Q4_0, 1);
  // Angles, embedding, and at the end the products of the logits and the choice.
  EXPECT_LE(six - (twelve - six), 6);
}

}  // namespace
}  // namespace tidal::test
