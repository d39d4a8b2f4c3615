// The plans that candidates stand for, and their names.
#include "eval/candidate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/error.h"

namespace tidal {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

const CandidatePolicies kPolicies = {default_policy(64), sketch_policy(48)};

TEST(CandidateTest, TidalPlansHaveRolesForAllLayers) {
  const Plan plan = plan_with(Candidate::tidal({2, 4}), 6, kPolicies);
  EXPECT_THAT(plan.roles,
              ElementsAre(Role::Dense, Role::Dense, Role::Select, Role::Sparse, Role::Select, Role::Sparse));
  EXPECT_EQ(plan.policy, default_policy(64));
  EXPECT_EQ(plan_with(Candidate::tidal({}), 3, kPolicies).count(Role::Dense), 3);
  for (const SelectLayers& wrong : {SelectLayers{4, 2}, {2, 2}, {2, 6}, {-1, 2}}) {
    EXPECT_THAT(test::error_of([&] { plan_with(Candidate::tidal(wrong), 6, kPolicies); }), HasSubstr("no rising list"));
  }
}

TEST(CandidateTest, SketchPlansScanUnlessTheyReuse) {
  const Plan plan = plan_with(Candidate::sketch(4, 1, {2, 4}), 6, kPolicies);
  EXPECT_THAT(plan.roles, ElementsAre(Role::Dense, Role::Scan, Role::Sparse, Role::Scan, Role::Sparse, Role::Scan));
  Policy policy = sketch_policy(48);
  policy.sketch_bits = 4;
  EXPECT_EQ(plan.policy, policy);
  EXPECT_EQ(plan_with(Candidate::sketch(2, 0), 3, kPolicies).count(Role::Scan), 3);
  // The first one that scans has nothing to reuse.
  for (const std::vector<int>& wrong : {std::vector<int>{1, 2}, {0, 3}, {3, 3}, {4, 3}, {6}}) {
    EXPECT_THAT(test::error_of([&] { plan_with(Candidate::sketch(2, 1, wrong), 6, kPolicies); }),
                HasSubstr("no rising list of layers from 2 to 5"));
  }
  EXPECT_THAT(test::error_of([] { plan_with(Candidate::sketch(2, 6), 6, kPolicies); }), HasSubstr("6 Dense layers"));
}

TEST(CandidateTest, NamesTellThemApart) {
  EXPECT_EQ(format_select({2, 9, 17}), "2 + 9, 17");
  EXPECT_EQ(format_select({2}), "2");
  EXPECT_EQ(format_candidate(Candidate::tidal({2, 9, 17})), "Select 2 + 9, 17");
  EXPECT_EQ(short_name(Candidate::tidal({2, 9, 17})), "2 + 9, 17");
  EXPECT_EQ(format_candidate(Candidate::sketch(2, 0)), "2-bit Scan");
  EXPECT_EQ(format_candidate(Candidate::sketch(1, 2)), "1-bit Scan, Dense 0, 1");
  EXPECT_EQ(format_candidate(Candidate::sketch(4, 1, {5, 9})), "4-bit Scan, Dense 0, Sparse 5, 9");
  EXPECT_EQ(short_name(Candidate::sketch(4, 1, {5, 9})), "4 bit, 1 Dense, 2 Sparse");
  EXPECT_EQ(short_name(Candidate::sketch(2, 0)), "2 bit");
}

}  // namespace
}  // namespace tidal
