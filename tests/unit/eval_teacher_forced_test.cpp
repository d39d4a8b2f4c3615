// Plans side by side over one text against every plan alone.
#include <gmock/gmock.h>

#include <map>

#include "eval/teacher_forced.h"
#include "unit/engine_setup.h"

namespace tidal::test {
namespace {

constexpr int kPrefix = 150, kSteps = 70;  // more than a block, and not at a block's edge
constexpr int kChunk = 128;                // what a prefix gets depends on its chunks where products are float32

std::vector<Plan> some_plans() {
  Plan corrected = small_plan(40);
  corrected.correct = 16;
  return {small_plan(), Plan::tidal(6, 3, paper_policy(kBudget)), Plan::full(6), corrected,
          small_plan(kPrefix + 20)};  // sparse only in the end
}

/// [plan][step] logits of each plan alone on an engine of its own.
std::vector<std::vector<std::vector<float>>> alone(const std::string& backend, std::span<const Plan> plans,
                                                   std::span<const Token> tokens) {
  std::vector<std::vector<std::vector<float>>> logits;
  for (const Plan& plan : plans) {
    SmallEngine setup(backend, GGML_TYPE_Q8_0, Plan::full(6), {.context = 512, .chunk = kChunk});
    Sequence sequence = setup.prefilled(kPrefix, 1);
    setup.engine.set_plan(plan);
    auto& own = logits.emplace_back();
    for (const Token token : tokens) own.push_back(copy(setup.engine.decode(sequence, token)));
  }
  return logits;
}

class TeacherForced : public test::BackendTest<std::string> {};

INSTANTIATE_TEST_SUITE_P(All, TeacherForced, testing::ValuesIn(test::kBackends),
                         [](const auto& info) { return info.param; });

TEST_P(TeacherForced, EveryPlanGetsWhatItGetsAlone) {
  const std::vector<Plan> plans = some_plans();
  const std::vector<Token> tokens = random_tokens(kSteps, 2);
  const auto expected = alone(GetParam(), plans, tokens);
  const auto full = alone(GetParam(), std::vector{Plan::full(6)}, tokens)[0];
  struct Case {
    int sequences;  // in a batch
    int together;   // plans that the pool has room for
  };
  for (const Case& which : {Case{8, 5}, Case{2, 5}, Case{1, 5}, Case{3, 2}, Case{8, 1}}) {
    SCOPED_TRACE(testing::Message() << which.sequences << " in a batch, room for " << which.together);
    const EngineOptions options{.context = kPrefix + kSteps,
                                .tokens = kBlockTokens * blocks_for(kPrefix) +
                                          teacher_forced_tokens(which.together, kSteps) -
                                          kBlockTokens * (which.sequences - 1),  // which the pool adds
                                .chunk = kChunk,
                                .sequences = which.sequences};
    SmallEngine setup(GetParam(), GGML_TYPE_Q8_0, Plan::full(6), options);
    const Sequence prefix = setup.prefilled(kPrefix, 1);
    const std::vector<Bf16> before = setup.cache(prefix);
    const int free = setup.engine.pool().free_blocks();
    std::map<int, int> steps;
    EXPECT_TRUE(teacher_forced(setup.engine, prefix, tokens, plans, [&](const ForcedStep& at) {
      EXPECT_EQ(at.step, steps[at.plan]++) << "plan " << at.plan;
      EXPECT_EQ(copy(at.logits), expected.at(at.plan).at(at.step)) << "plan " << at.plan << ", step " << at.step;
      EXPECT_EQ(copy(at.full), full.at(at.step));
      return true;
    }));
    EXPECT_EQ(steps, (std::map<int, int>{{0, kSteps}, {1, kSteps}, {2, kSteps}, {3, kSteps}, {4, kSteps}}));
    EXPECT_TRUE(same_bits(setup.cache(prefix), before)) << "the prefix stays";
    EXPECT_EQ(setup.engine.pool().free_blocks(), free) << "forks give back what they took";
  }
}

TEST_P(TeacherForced, StopsWhenToldTo) {
  SmallEngine setup(GetParam(), GGML_TYPE_F32, Plan::full(6));
  const Sequence prefix = setup.prefilled(100, 1);
  const std::vector<Plan> plans(3, small_plan());
  int calls = 0;
  EXPECT_FALSE(
      teacher_forced(setup.engine, prefix, random_tokens(5, 2), plans, [&](const ForcedStep&) { return ++calls < 5; }));
  EXPECT_EQ(calls, 5);
}

TEST_P(TeacherForced, NothingToDo) {
  SmallEngine setup(GetParam(), GGML_TYPE_F32, Plan::full(6));
  const Sequence prefix = setup.prefilled(100, 1);
  const auto never = [](const ForcedStep&) {
    ADD_FAILURE() << "called";
    return true;
  };
  EXPECT_TRUE(teacher_forced(setup.engine, prefix, random_tokens(5, 2), {}, never));
  EXPECT_TRUE(teacher_forced(setup.engine, prefix, {}, std::vector{small_plan()}, never));
}

TEST_P(TeacherForced, RefusesWhatCannotRun) {
  SmallEngine setup(GetParam(), GGML_TYPE_F32, Plan::full(6), {.context = 200, .tokens = 256, .chunk = 128});
  const Sequence prefix = setup.prefilled(100, 1);
  const std::vector<Plan> one = {small_plan()};
  const auto use = [](const ForcedStep&) { return true; };
  const auto run = [&](int steps, std::span<const Plan> plans) {
    return error_of([&] { teacher_forced(setup.engine, prefix, random_tokens(steps, 2), plans, use); });
  };
  EXPECT_EQ(run(101, one), "evaluation: 101 tokens behind 100 do not fit in a context of 200");
  // Two of four blocks are the prefix's; full attention and a plan would take two each.
  EXPECT_EQ(run(5, one), "evaluation: full attention and one plan need 4 free blocks of the KV cache, it has 2");
  EXPECT_THAT(run(5, std::vector{small_plan(kBudget, 7)}), testing::HasSubstr("7"));
}

}  // namespace
}  // namespace tidal::test
