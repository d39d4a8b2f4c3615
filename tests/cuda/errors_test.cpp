// What goes wrong with a device is said in one sentence, and ends the program.
#include <gtest/gtest.h>

#include <cstdlib>

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/runtime/device.h"
#include "backend/cuda/runtime/error.h"
#include "unit/engine_setup.h"

namespace tidal::test {
namespace {

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

TEST(CudaMessages, OfTheDriver) {
  EXPECT_EQ(cuda::driver_problem(0, 13000), "there is no NVIDIA driver on this machine");
  EXPECT_EQ(cuda::driver_problem(12080, 13000), "the driver is too old: it is for CUDA 12.8, expected 13.0 or later");
}

TEST(CudaMessages, SayWhatToDo) {
  const auto message = [](cudaError_t code) { return error_of([&] { cuda::fail_with(code, "decoding"); }); };
  EXPECT_EQ(message(cudaErrorNoDevice),
            "cuda: decoding: no device found, expected an NVIDIA GPU (CUDA_VISIBLE_DEVICES may hide it)");
  EXPECT_EQ(message(cudaErrorMemoryAllocation), "out of memory: the device has no room for decoding");
  for (const cudaError_t code : {cudaErrorIllegalAddress, cudaErrorLaunchFailure, cudaErrorECCUncorrectable}) {
    EXPECT_TRUE(has(message(code), "cuda: decoding: the device was lost (")) << message(code);
    EXPECT_TRUE(has(message(code), "start the program again"));
  }
  EXPECT_TRUE(message(cudaErrorNotSupported).starts_with("cuda: decoding: "));
}

class CudaErrors : public testing::Test {
 protected:
  void SetUp() override {
    if (!has_cuda_device()) GTEST_SKIP() << "no CUDA device";
  }
};

TEST_F(CudaErrors, MemoryThatIsNotThere) {
  const auto backend = cuda::make_backend();
  for (const size_t bytes : {size_t{1} << 44, size_t{1} << 62}) {
    const std::string message = error_of([&] { backend->allocate(bytes, "KV cache"); });
    EXPECT_TRUE(has(message, "out of memory: cannot get ")) << message;
    EXPECT_TRUE(has(message, " MiB for the KV cache, ")) << message;
  }
  // The backend is as good as before.
  EXPECT_EQ(backend->allocate(1024, "a test").bytes(), 1024u);
}

TEST_F(CudaErrors, WhatItCannotComputeIsNamed) {
  const auto backend = cuda::make_backend();
  const auto said = [&](auto&& change) {
    Hyperparameters hp = small_shape();
    change(hp);
    return backend->unsupported(hp);
  };
  EXPECT_EQ(said([](Hyperparameters&) {}), "");
  for (const int dim : {8, 40, 136, 320}) {
    EXPECT_EQ(said([&](Hyperparameters& hp) { hp.head_dim = dim; }), "heads of " + std::to_string(dim) + " elements");
  }
  EXPECT_EQ(said([](Hyperparameters& hp) { hp.window_kv = {.heads = 2, .head_dim = 24}; }), "heads of 24 elements");
  const Experts few{.count = 8, .used = 2, .ffn = 64};
  EXPECT_EQ(said([&](Hyperparameters& hp) { hp.experts = few; }), "");
  EXPECT_EQ(said([&](Hyperparameters& hp) { (hp.experts = few).used = 33; }),
            "models whose tokens go through more than 32 experts each");
  EXPECT_EQ(said([&](Hyperparameters& hp) { (hp.experts = few).count = 1025; }), "models of more than 1024 experts");
  EXPECT_EQ(said([&](Hyperparameters& hp) { (hp.experts = few).ffn = 1 << 20; }),
            "mixtures of experts as wide as these, on this device,");
  EXPECT_EQ(said([&](Hyperparameters& hp) {
              hp.experts = few;
              hp.post_norms = true;
            }),
            "norms behind experts or recurrent layers");
  const auto recurrent = [](int dim, int values) {
    return [=](Hyperparameters& hp) { hp.delta = {.taps = 4, .head_dim = dim, .key_heads = 1, .value_heads = values}; };
  };
  EXPECT_EQ(said(recurrent(64, 2)), "");
  EXPECT_EQ(said(recurrent(20, 2)), "recurrent layers with heads of other sizes than multiples of 8 up to 256");
  EXPECT_EQ(said(recurrent(64, 1)), "recurrent layers of a single value head");
  for (const char* name : {"gemma2-9b", "gemma4-31b", "gemma4-26b-a4b", "gemma4-e4b"}) {
    EXPECT_EQ(backend->unsupported(known_shape(name)), "") << name;
  }
}

TEST_F(CudaErrors, AContextThatDoesNotFit) {
  const auto backend = cuda::make_backend();
  const Model model = random_small_model(small_shape(), GGML_TYPE_F32, *backend);
  const std::string message =
      error_of([&] { Engine(*backend, model, small_plan(), {.context = 2000000000, .sequences = 1}); });
  EXPECT_TRUE(has(message, "out of memory: a context of 2000000000 needs ")) << message;
}

/// Has a kernel of the step write where no memory is.
class Saboteur final : public ForwardObserver {
 public:
  Saboteur(Backend& backend, const Weight& embedding) : backend_(backend), embedding_(embedding) {}
  void attended(int layer, const Batch& batch, Rows q, KvLayer, const Selection&) override {
    if (layer != 3) return;
    backend_.embed(embedding_, batch, {reinterpret_cast<float*>(uintptr_t{4096}), q.rows, 128});
  }

 private:
  Backend& backend_;
  const Weight& embedding_;
};

/// A program that loses its device in the middle of a step, as main() would end it.
[[noreturn]] void lose_the_device() {
  try {
    SmallEngine setup("cuda");
    Sequence sequence = setup.prefilled(40, 1);
    Saboteur saboteur(*setup.backend, setup.model.embedding);
    setup.engine.set_observer(&saboteur);
    const std::string first = error_of([&] { setup.engine.decode(sequence, 1); });
    const std::string second = error_of([&] { setup.engine.decode(sequence, 1); });
    if (!has(second, "the device was lost")) std::exit(3);
    throw Error(first);
  } catch (const Error& error) {
    std::fprintf(stderr, "tidal: %s\n", error.what());
    std::exit(1);
  }
}

TEST_F(CudaErrors, ALostDeviceEndsTheProgram) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(lose_the_device(), testing::ExitedWithCode(1), "^tidal: cuda: .*: the device was lost \\(.*start the");
}

}  // namespace
}  // namespace tidal::test
