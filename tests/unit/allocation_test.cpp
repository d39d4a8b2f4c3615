// A decode step allocates nothing: every malloc of the process is counted, from whatever library and on whatever
// thread.
#include <gtest/gtest.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>

#include "unit/engine_setup.h"

#if defined(__has_feature)  // clang says it so
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define TIDAL_SANITIZED 1
#endif
#endif
#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) && !defined(TIDAL_SANITIZED)
#define TIDAL_COUNTS_ALLOCATIONS 1
#else
#define TIDAL_COUNTS_ALLOCATIONS 0  // the sanitizers need malloc for themselves
#endif

namespace {

std::atomic<bool> counting{false};
std::atomic<int64_t> allocations{0};

[[maybe_unused]] void count() {
  if (counting.load(std::memory_order_relaxed)) allocations.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace

#if TIDAL_COUNTS_ALLOCATIONS
// glibc lets a program put its own functions before these; operator new and every shared library end up here.
extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);

void* malloc(size_t size) {
  count();
  return __libc_malloc(size);
}
void* calloc(size_t items, size_t size) {
  count();
  return __libc_calloc(items, size);
}
void* realloc(void* old, size_t size) {
  count();
  return __libc_realloc(old, size);
}
void* aligned_alloc(size_t alignment, size_t size) {
  count();
  return __libc_memalign(alignment, size);
}
int posix_memalign(void** to, size_t alignment, size_t size) {
  count();
  *to = __libc_memalign(alignment, size);
  return *to ? 0 : ENOMEM;
}
}
#endif

namespace tidal::test {
namespace {

/// Allocations while `function` runs.
template <typename Function>
int64_t allocations_of(Function&& function) {
  allocations = 0;
  counting = true;
  function();
  counting = false;
  return allocations;
}

class Allocation : public testing::TestWithParam<ggml_type> {
 protected:
  void SetUp() override {
    if (!TIDAL_COUNTS_ALLOCATIONS) GTEST_SKIP() << "allocations are counted with glibc and without sanitizers only";
  }
};

INSTANTIATE_TEST_SUITE_P(Types, Allocation, testing::Values(GGML_TYPE_F32, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0),
                         [](const auto& info) { return ggml_type_name(info.param); });

TEST_P(Allocation, IsCounted) {
  EXPECT_EQ(allocations_of([] {}), 0);
  // Called by name: a new expression the compiler may leave out.
  EXPECT_EQ(allocations_of([] { ::operator delete(::operator new(8)); }), 1);
  EXPECT_EQ(allocations_of([] { std::free(std::aligned_alloc(64, 64)); }), 1);
}

TEST_P(Allocation, DecodingNeedsNone) {
  const Plan plans[] = {Plan::full(6), small_plan(), Plan::tidal(6, 4, paper_policy(kBudget)),
                        Plan::tidal(6, 3, {Scope::Kv, Pooling::Sum, kBudget, 4, 8}),
                        Plan::sketch(6, 0, sketch_policy(kBudget))};
  for (const Plan& plan : plans) {
    SmallEngine setup("cpu", GetParam(), plan);
    Sequence sequence = setup.prefilled(60, 1);
    // The first step starts the threads' pools; later ones pass edges of blocks and the length of 128 at which a
    // growing table of tokens would move.
    setup.engine.decode(sequence, 1);
    EXPECT_EQ(allocations_of([&] {
                for (int i = 0; i < 100; ++i) setup.engine.decode(sequence, static_cast<Token>(i % 97));
              }),
              0);
    EXPECT_EQ(sequence.length(), 161);
  }
}

TEST_P(Allocation, DecodingManySequencesNeedsNone) {
  SmallEngine setup("cpu", GetParam());
  std::vector<Sequence> sequences;
  for (int i = 0; i < 8; ++i) sequences.push_back(setup.prefilled(10 + 40 * i, i));
  const std::vector<Token> token = {3};
  std::vector<Engine::Request> requests;
  for (Sequence& sequence : sequences) requests.push_back({&sequence, token, true});
  setup.engine.step(requests);
  EXPECT_EQ(allocations_of([&] {
              for (int i = 0; i < 30; ++i) setup.engine.step(requests);
            }),
            0);
}

TEST_P(Allocation, ChoosingTheMostLikelyNeedsNone) {
  SmallEngine setup("cpu", GetParam());
  Sequence sequence = setup.prefilled(60, 1);
  setup.engine.decode(sequence, 1, 40);
  EXPECT_EQ(allocations_of([&] {
              for (int i = 0; i < 30; ++i) setup.engine.decode(sequence, static_cast<Token>(i % 97), 40);
            }),
            0);
}

TEST_P(Allocation, AForkDecodesWithoutAny) {
  SmallEngine setup("cpu", GetParam());
  const Sequence sequence = setup.prefilled(100, 1);
  Sequence fork = sequence.fork();
  setup.engine.decode(fork, 1);
  EXPECT_EQ(allocations_of([&] {
              for (int i = 0; i < 60; ++i) setup.engine.decode(fork, 1);
            }),
            0);
}

}  // namespace
}  // namespace tidal::test
