// A scheduler over K and V of which a few blocks are on the device: texts are those of a pool that is all there, bit
// for bit, whoever has to give way.
#include <deque>

#include "unit/scheduler_setup.h"

namespace tidal {
namespace {

using test::JobSetup;
using test::Outcome;
using test::random_tokens;
using test::SmallEngine;

struct Case {
  std::string backend;
  KvType type;
  int device_blocks;
};

class HostBlocksScheduler : public testing::TestWithParam<Case> {
 protected:
  /// Without a device, or one that can do it, the test is skipped, but not before it is made.
  static bool possible() {
    static const bool device = has_cuda_device() && make_backend("cuda", 1)->host_kv_problem().empty();
    return GetParam().backend != "cuda" || device;
  }
  void SetUp() override {
    if (!possible()) GTEST_SKIP() << "there is no device that reads host memory";
  }
  static SmallEngine engine(int device_blocks) {
    // 8 blocks and one for every further sequence: four jobs of up to five blocks do not fit.
    EngineOptions options{.context = 512, .chunk = 96, .sequences = 4};
    options.kv_type = GetParam().type;
    options.device_blocks = device_blocks;
    if (device_blocks == 1) options.cached_rows = 16;  // fewer than a step reads
    return SmallEngine(possible() ? GetParam().backend : "cpu", GGML_TYPE_F32, test::small_plan(), options);
  }
  /// Of these kinds; all begin alike, and each goes on with something of its own.
  static std::vector<JobSetup> jobs(const std::vector<int>& kinds, bool use_cache) {
    std::vector<JobSetup> jobs;
    for (const int kind : kinds) {
      const int i = static_cast<int>(jobs.size());
      std::vector<Token> prompt = random_tokens(70, 100);
      const std::vector<Token> own = random_tokens(30 + 20 * i, 200 + static_cast<uint64_t>(i));
      prompt.insert(prompt.end(), own.begin(), own.end());
      jobs.push_back(test::job_of_kind(kind, std::move(prompt), 150 + i, static_cast<uint64_t>(i)));
      jobs.back().use_cache = use_cache;
    }
    return jobs;
  }
  static std::deque<Outcome> run(Scheduler& scheduler, const std::vector<JobSetup>& jobs) {
    std::deque<Outcome> outcomes(jobs.size());
    for (size_t i = 0; i < jobs.size(); ++i) test::submit(scheduler, i, jobs[i], outcomes[i]);
    test::run(scheduler);
    return outcomes;
  }
};

INSTANTIATE_TEST_SUITE_P(All, HostBlocksScheduler, testing::ValuesIn([] {
                           std::vector<Case> cases;
                           for (const std::string backend : {"cpu", "cuda"}) {
                             cases.push_back({backend, KvType::Bf16, 1});
                             cases.push_back({backend, KvType::Bf16, 4});
                             cases.push_back({backend, KvType::Q8, 3});
                           }
                           return cases;
                         }()),
                         [](const auto& info) {
                           return info.param.backend + (info.param.type == KvType::Q8 ? "_bits8_" : "_") +
                                  std::to_string(info.param.device_blocks);
                         });

TEST_P(HostBlocksScheduler, PreemptedJobsGoOnWithTheSameText) {
  SmallEngine whole = engine(kAllSlots), split = engine(GetParam().device_blocks);
  ASSERT_EQ(split.engine.pool().blocks(), whole.engine.pool().blocks());
  for (const bool use_cache : {false, true}) {
    // Without exact mode, whose drafts are as long as pays, nothing hangs on how long a step took.
    const std::vector<JobSetup> same = jobs({0, 1, 2, 4, 5, 1}, use_cache);
    Scheduler of_whole(whole.engine, {}), of_split(split.engine, {});
    const std::deque<Outcome> expected = run(of_whole, same), got = run(of_split, same);
    for (size_t i = 0; i < same.size(); ++i) {
      EXPECT_EQ(got[i].text, expected[i].text) << "job " << i;
      EXPECT_EQ(got[i].end, JobEnd::Limit) << got[i].report.error;
      EXPECT_EQ(got[i].report.cached_tokens, expected[i].report.cached_tokens);
    }
    EXPECT_GE(of_split.state().preemptions, 2) << "nobody gave way, so this tests nothing";
    EXPECT_EQ(of_split.state().preemptions, of_whole.state().preemptions);
    // What the cache keeps lies there, too.
    EXPECT_GE(split.engine.pool().blocks_on_host(), of_split.state().cached_blocks - GetParam().device_blocks);
    test::expect_all_blocks_back(of_split, split.engine);
    EXPECT_EQ(split.engine.pool().blocks_on_host(), 0);
  }
}

TEST_P(HostBlocksScheduler, ExactModeInCompanyGivesTheSameText) {
  SmallEngine whole = engine(kAllSlots), split = engine(GetParam().device_blocks);
  // Behind a prefix that was found chunks begin elsewhere, where a device's products of long chunks round last bits in
  // another way. In 8 bits such a bit may be another code, which is enough for a text to part.
  const bool same_chunks = GetParam().backend == "cuda" && GetParam().type == KvType::Q8;
  const std::vector<JobSetup> setups = jobs({3, 1, 3, 2, 0}, !same_chunks);
  Scheduler scheduler(split.engine, {});
  const std::deque<Outcome> got = run(scheduler, setups);
  for (size_t i = 0; i < setups.size(); ++i) {
    EXPECT_EQ(got[i].text, test::alone(whole.engine, setups[i]).first) << "job " << i;
    EXPECT_EQ(got[i].end, JobEnd::Limit) << got[i].report.error;
  }
  EXPECT_GE(scheduler.state().preemptions, 1) << "nobody gave way, so this tests nothing";
  test::expect_all_blocks_back(scheduler, split.engine);
}

}  // namespace
}  // namespace tidal
