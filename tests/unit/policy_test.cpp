// Policies: shares become numbers, and what cannot be is refused.
#include "backend/policy.h"

#include <cmath>
#include <limits>

#include "unit/engine_setup.h"

namespace tidal {
namespace {

using test::error_of;
using test::random_tokens;
using test::SmallEngine;

TEST(Policy, NumbersStayAsTheyAre) {
  const Policy policy{Scope::Kv, Pooling::Max, 100, 3, 20};
  for (const int context : {1, 99, 100, 100000}) EXPECT_EQ(policy.at(context), policy);
}

TEST(Policy, SharesOfTheContextHaveAFloor) {
  Policy policy{Scope::Shared, Pooling::Sum, 128, 4, 32};
  policy.budget_share = 0.05;
  policy.recent_share = 0.25;
  EXPECT_EQ(policy.at(1000).budget, 128);
  EXPECT_EQ(policy.at(1000).recent, 32);
  EXPECT_EQ(policy.at(10000).budget, 500);
  EXPECT_EQ(policy.at(10000).recent, 125);
  EXPECT_EQ(policy.at(10000).sinks, 4);
  EXPECT_EQ(policy.at(10000).at(20), policy.at(10000)) << "in numbers once is in numbers for good";
}

TEST(Policy, TheBudgetNeverExceedsAContextAboveItsFloor) {
  Policy policy = default_policy(64);
  policy.budget_share = 1;
  for (const int context : {65, 66, 1000, std::numeric_limits<int>::max()})
    EXPECT_LE(policy.at(context).budget, context);
}

std::string check_error(const Policy& policy) {
  Plan plan = Plan::tidal(6, 4, policy);
  return error_of([&] { plan.check(test::small_shape(6)); });
}

TEST(Policy, WhatIsNoShareIsRefused) {
  const double nan = std::nan("");
  for (const double share : {-0.1, 1.5, nan, std::numeric_limits<double>::infinity()}) {
    Policy policy = default_policy(64);
    policy.budget_share = share;
    EXPECT_NE(check_error(policy).find("budget's share of the context"), std::string::npos) << share;
    policy = default_policy(64);
    policy.recent_share = share;
    EXPECT_NE(check_error(policy).find("recent share of the budget"), std::string::npos) << share;
  }
  for (const double top_p : {0.0, -1.0, 1.5, nan}) {
    Policy policy = default_policy(64);
    policy.top_p = top_p;
    EXPECT_NE(check_error(policy).find("expected a share of the attention mass above 0, at most 1"), std::string::npos)
        << top_p;
  }
  Policy policy = default_policy(64);
  policy.recent_share = 1;  // leaves no room for the sinks
  EXPECT_EQ(check_error(policy), "plan: 4 sinks and 64 recent positions do not fit in a budget of 64");
  policy = {Scope::Kv, Pooling::Max, 64, 4, 16};
  policy.top_p = 0.9;
  EXPECT_EQ(check_error(policy),
            "plan: top-p needs the attention mass of the heads together, so pooling sum (or scope head), not max");
  policy.scope = Scope::Head;
  EXPECT_EQ(check_error(policy), "no error");
}

class PolicyDecode : public test::BackendTest<std::string> {};
INSTANTIATE_TEST_SUITE_P(All, PolicyDecode, testing::ValuesIn(test::kBackends),
                         [](const auto& info) { return info.param; });

std::vector<float> decode_by(SmallEngine& setup, const Policy& policy, int prefix) {
  Plan plan = test::small_plan();
  plan.policy = policy;
  Sequence sequence = setup.prefilled(prefix, 1);
  const Token token = 5;
  const Engine::Request request{.sequence = &sequence, .tokens = {&token, 1}, .decode = true, .plan = &plan};
  return test::copy(setup.engine.step({&request, 1}));
}

TEST_P(PolicyDecode, AShareIsTheNumberThatItStandsFor) {
  SmallEngine setup(GetParam());
  Policy share = default_policy(20), number = default_policy(60);
  share.budget_share = 0.2;
  share.recent_share = 0.25;
  EXPECT_EQ(decode_by(setup, share, 299), decode_by(setup, number, 299));
  EXPECT_NE(decode_by(setup, share, 299), decode_by(setup, default_policy(20), 299));
  EXPECT_EQ(decode_by(setup, share, 59), decode_by(setup, default_policy(20), 59)) << "the floor";
}

TEST_P(PolicyDecode, TopPOfAllIsTheBudget) {
  SmallEngine setup(GetParam());
  for (const Scope scope : {Scope::Head, Scope::Kv, Scope::Shared}) {
    Policy policy{scope, Pooling::Sum, 40, 4, 10};
    const std::vector<float> whole = decode_by(setup, policy, 200);
    policy.top_p = 0.999999;  // more than 40 of 200 positions of a flat softmax hold
    EXPECT_EQ(decode_by(setup, policy, 200), whole);
    policy.top_p = 0.05;
    EXPECT_NE(decode_by(setup, policy, 200), whole);
  }
}

// Every sequence of a batch by a plan of its own gets what it gets alone, bit for bit.
TEST_P(PolicyDecode, PlansOfABatch) {
  SmallEngine setup(GetParam());
  std::vector<Plan> plans = {Plan::full(6), test::small_plan(), test::small_plan(48),
                             Plan::tidal(6, 3, paper_policy(24))};
  plans.push_back(test::small_plan());
  plans.back().roles = {Role::Select, Role::Sparse, Role::Select, Role::Sparse, Role::Dense, Role::Sparse};
  plans.push_back(test::small_plan());
  plans.back().policy.top_p = 0.3;
  const std::vector<Token> tokens = random_tokens(5, 8);
  std::vector<std::vector<float>> alone;
  for (size_t p = 0; p < plans.size(); ++p) {
    Sequence sequence = setup.prefilled(90 + static_cast<int>(p), 1);
    for (const Token token : tokens) {
      const Engine::Request request{.sequence = &sequence, .tokens = {&token, 1}, .decode = true, .plan = &plans[p]};
      alone.push_back(test::copy(setup.engine.step({&request, 1})));
    }
  }
  std::vector<Sequence> sequences;
  for (size_t p = 0; p < plans.size(); ++p) sequences.push_back(setup.prefilled(90 + static_cast<int>(p), 1));
  const size_t vocab = setup.model.hp.vocab;
  for (size_t i = 0; i < tokens.size(); ++i) {
    std::vector<Engine::Request> requests;
    for (size_t p = 0; p < plans.size(); ++p) {
      requests.push_back({.sequence = &sequences[p], .tokens = {&tokens[i], 1}, .decode = true, .plan = &plans[p]});
    }
    const auto logits = setup.engine.step(requests);
    for (size_t p = 0; p < plans.size(); ++p) {
      EXPECT_EQ(test::copy(logits.subspan(p * vocab, vocab)), alone[p * tokens.size() + i]) << "plan " << p;
    }
  }
}

TEST_P(PolicyDecode, APlanThatDoesNotFitIsRefused) {
  SmallEngine setup(GetParam());
  Sequence sequence = setup.prefilled(40, 1);
  const Plan plan = Plan::full(5);
  const Token token = 5;
  const Engine::Request request{.sequence = &sequence, .tokens = {&token, 1}, .decode = true, .plan = &plan};
  EXPECT_EQ(error_of([&] { setup.engine.step({&request, 1}); }), "plan: it has 5 layers, but the model has 6");
  EXPECT_EQ(sequence.length(), 40);
}

}  // namespace
}  // namespace tidal
