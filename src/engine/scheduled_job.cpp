#include "engine/scheduled_job.h"

#include <algorithm>
#include <limits>

#include "core/error.h"

namespace tidal {
namespace {

// A beginning of fewer tokens is computed as fast as its block is copied; most texts share that much.
constexpr int kLeastShared = 16;

}  // namespace

ScheduledJob::ScheduledJob(Engine& engine, JobId id, uint64_t arrival, Job&& job)
    : engine_(engine),
      id_(id),
      arrival_(arrival),
      job_(std::move(job)),
      plan_(job_.plan ? *job_.plan : engine.plan()),
      clean_only_(job_.exact > 0 || plan_.needs_clean()),
      tokens_(std::move(job_.prompt)),
      prompt_(static_cast<int>(tokens_.size())) {
  if (job_.exact > 0) {
    exact_ = std::make_unique<ExactDecoder>(engine, ExactOptions{.drafts = job_.exact, .plan = plan_});
  }
  report_.prompt_tokens = prompt_;
}

void ScheduledJob::begin(PrefixCache& cache) {
  const int context = engine_.options().context;
  const int count = static_cast<int>(tokens_.size());
  const int most = begun_ ? count - 1 : engine_.reusable(count);
  sequence_.emplace(job_.use_cache ? cache.find(tokens_, most, clean_only_, context) : engine_.create());
  if (sequence_->length() < kLeastShared) sequence_->truncate(0);
  const int length = sequence_->length();
  if (!begun_) {
    start_ = length;
  } else if (length > start_ && length < prompt_) {
    // On with the chunks as they were: what a chunk computes may hang on its bounds, in the last bits.
    int begin = start_ + (length - start_) / engine_.chunk() * engine_.chunk();
    while (begin > start_ && !sequence_->goes_on_at(begin)) begin -= engine_.chunk();
    sequence_->truncate(begin);
  }
  sequence_->windows().advance(sequence_->length());  // others may need what lies before
}

void ScheduledJob::begin_at_whole_block() {
  sequence_->truncate(sequence_->begin_of_pass(sequence_->length() / kBlockTokens * kBlockTokens));
  if (!begun_) start_ = sequence_->length();
}

void ScheduledJob::wait() {
  sequence_.reset();
  enter(JobPhase::Waiting);
}

int ScheduledJob::target() const {
  // Text that was decoded by a sparse plan is decoded by it again, with known tokens: only so are its K/V the same.
  return has_text() && clean_only_ ? static_cast<int>(tokens_.size()) - 1 : prompt_;
}

int ScheduledJob::chunk() const {
  const int at = sequence_->length(), chunk = engine_.chunk();
  int end = target();
  if (at < start_) {
    end = std::min(start_, at + chunk);
  } else if (at < prompt_) {
    end = std::min(prompt_, start_ + ((at - start_) / chunk + 1) * chunk);
    end = at + engine_.prompt_rows(at, end - at, end == prompt_);
  } else {
    // Text: by the arithmetic of the decode steps that computed it first.
    const int most = std::min({chunk, engine_.pool().backend().decode_rows(), end - at});
    end = at + engine_.text_rows(at, most);
  }
  return end - at;
}

Engine::Request ScheduledJob::prefill_request(int count) {
  return {.sequence = &*sequence_, .tokens = tokens().subspan(sequence_->length(), count)};
}

Engine::Request ScheduledJob::decode_request() {
  return {.sequence = &*sequence_, .tokens = tokens().subspan(sequence_->length(), 1), .decode = true, .plan = &plan_};
}

int ScheduledJob::missing_blocks(const Engine::Request& request) const {
  const int length = sequence_->length(), polluted = length - sequence_->clean();
  // A correction writes to what it corrects.
  const bool corrects = request.decode && plan_.correct > 0 && polluted >= plan_.correct;
  return sequence_->missing_blocks(corrects ? sequence_->clean() : length, static_cast<int>(request.tokens.size()));
}

int ScheduledJob::missing_blocks_of_round() const {
  const int length = sequence_->length();
  return sequence_->missing_blocks(length, std::min(job_.exact + 1, engine_.options().context - length));
}

int ScheduledJob::missing_blocks(int more) const {
  const int length = sequence_->length();
  const int end = std::min(static_cast<int>(tokens_.size()) + more, engine_.options().context);
  return sequence_->missing_blocks(length, std::max(0, end - length));
}

std::optional<JobEnd> ScheduledJob::take(Token token) {
  if (token < 0 || token >= engine_.model().hp.vocab) {
    fail("chooser: token {} is outside the vocabulary of {}", token, engine_.model().hp.vocab);
  }
  if (job_.chooser->ends(token)) return JobEnd::EndToken;
  tokens_.push_back(token);
  const bool going = job_.token(token);
  if (job_.most >= 0 && static_cast<int64_t>(tokens_.size()) - prompt_ >= job_.most) return JobEnd::Limit;
  if (!going) return JobEnd::Stopped;
  if (static_cast<int>(tokens_.size()) > engine_.options().context) return JobEnd::ContextFull;
  return std::nullopt;
}

std::optional<JobEnd> ScheduledJob::advance_exact() {
  const int64_t given = static_cast<int64_t>(tokens_.size()) - prompt_;
  const int64_t most = job_.most < 0 ? std::numeric_limits<int>::max() : job_.most - given;
  const int limit = static_cast<int>(std::min<int64_t>(most, std::numeric_limits<int>::max()));
  const auto chosen = exact_->advance(*sequence_, tokens_.back(), limit, chooser());
  report_.decoded_tokens += static_cast<int64_t>(chosen.size());
  report_.decode_bytes = exact_->statistics().bytes;
  for (const Token token : chosen) {
    if (const auto end = take(token)) return end;
  }
  return std::nullopt;
}

void ScheduledJob::enter(JobPhase phase) {
  if (phase == JobPhase::Prefill) begun_ = true;
  const double seconds = timer_.seconds();
  timer_.restart();
  switch (phase_) {
    case JobPhase::Waiting: report_.queue_seconds += seconds; break;
    case JobPhase::Prefill: report_.prefill_seconds += seconds; break;
    case JobPhase::Decode: report_.decode_seconds += seconds; break;
  }
  phase_ = phase;
}

}  // namespace tidal
