#include "engine/scheduler.h"

#include <algorithm>
#include <deque>
#include <exception>
#include <utility>

#include "core/error.h"
#include "core/timer.h"
#include "engine/scheduled_job.h"

namespace tidal {
namespace {

/// What the exception being handled says.
std::string current_error() {
  try {
    throw;
  } catch (const std::exception& error) {
    return error.what();
  } catch (...) {
    return "an error without a text";
  }
}

using Owner = std::unique_ptr<ScheduledJob>;

/// Null when it is not there.
template <typename List>
Owner take_from(List& list, const ScheduledJob& job) {
  const auto owner = std::find_if(list.begin(), list.end(), [&](const Owner& other) { return other.get() == &job; });
  if (owner == list.end()) return nullptr;
  Owner taken = std::move(*owner);
  list.erase(owner);
  return taken;
}

}  // namespace

struct Scheduler::Impl {
  Impl(Engine& engine, const SchedulerOptions& options)
      : engine(engine), options(options), cache(engine.pool(), options.sessions) {}

  // Who runs.
  void admit();
  bool fits_beside_others(const ScheduledJob& job) const;
  void preempt(ScheduledJob& job);
  void end(ScheduledJob& job, JobEnd how, const std::string& error = "", bool keep = true);
  bool is_running(const ScheduledJob* job) const;

  // Blocks.
  bool make_room(int blocks) { return blocks <= engine.pool().free_blocks() || cache.make_room(blocks); }
  void take_blocks_from_somebody();

  // A step.
  void compose();
  void add_prefill(bool decoding);
  void step_batch();
  void run_batch();
  void advance(ScheduledJob& job, const Engine::Request& request, const Prospects& next);
  void choose(ScheduledJob& job, Prospects next);
  void step_exact();

  Engine& engine;
  SchedulerOptions options;
  PrefixCache cache;
  std::deque<Owner> waiting;  // in the order of arrival
  std::vector<Owner> running;
  bool blocked = false;  // the first that waits does not fit, and nothing has been given back since
  uint64_t arrivals = 0, turns = 0;
  SchedulerState done;  // the counts of it

  // Of the step in progress; members so that a decode step allocates nothing.
  std::vector<ScheduledJob*> batch, order;
  std::vector<Engine::Request> requests;
  int decoded = 0;  // of the requests
  ReadCounter reads{engine};
  std::vector<LikelyToken> likely;
};

bool Scheduler::Impl::is_running(const ScheduledJob* job) const {
  return std::any_of(running.begin(), running.end(), [&](const Owner& other) { return other.get() == job; });
}

bool Scheduler::Impl::fits_beside_others(const ScheduledJob& job) const {
  // The others need room to go on with, too: who comes in last would be the first to be sent out again.
  int missing = job.missing_blocks(1);
  for (const Owner& other : running) missing += other->missing_blocks(kBlockTokens);
  const int free = engine.pool().free_blocks();
  return missing <= free || missing <= free + cache.reclaimable();
}

void Scheduler::Impl::admit() {
  while (!waiting.empty() && !blocked && static_cast<int>(running.size()) < engine.options().sequences) {
    ScheduledJob& job = *waiting.front();
    const bool first_time = !job.begun();
    try {
      if (first_time) engine.reserve_selection(job.plan());  // what it lacks concerns nobody else
      job.begin(cache);
      if (!fits_beside_others(job)) job.begin_at_whole_block();
    } catch (...) {
      end(job, JobEnd::Failed, current_error(), false);
      continue;
    }
    if (!fits_beside_others(job)) {
      const int missing = job.missing_blocks(1);
      job.wait();
      blocked = !running.empty();
      if (!blocked) {
        end(job, JobEnd::Failed,
            fmt::format("KV cache: {} tokens need {} more blocks of {} tokens, but others hold all but {} of {}",
                        job.tokens().size(), missing, kBlockTokens, engine.pool().free_blocks() + cache.reclaimable(),
                        engine.pool().blocks()));
      }
      continue;
    }
    if (first_time) {
      job.report().cached_tokens = job.sequence().length();
      done.prompt_tokens += job.prompt();
      done.cached_tokens += job.sequence().length();
    }
    job.turn = ++turns;
    job.enter(JobPhase::Prefill);
    if (!job.prefilling()) job.enter(JobPhase::Decode);
    running.push_back(std::move(waiting.front()));
    waiting.pop_front();
  }
}

void Scheduler::Impl::preempt(ScheduledJob& job) {
  // What nobody needs in the meantime is still there when it goes on.
  cache.keep(job.sequence());
  job.wait();
  Owner owner = take_from(running, job);
  const auto place = std::find_if(waiting.begin(), waiting.end(),
                                  [&](const Owner& other) { return other->arrival() > job.arrival(); });
  waiting.insert(place, std::move(owner));
  blocked = true;  // until another one ends, at least
  ++done.preemptions;
}

void Scheduler::Impl::end(ScheduledJob& job, JobEnd how, const std::string& error, bool keep) {
  Owner owner = take_from(running, job);
  if (!owner) owner = take_from(waiting, job);
  if (job.running() && keep) cache.keep(job.sequence());
  job.wait();
  blocked = false;
  ++done.jobs;
  job.report().error = error;
  try {
    job.job().finished(how, job.report());
  } catch (...) {
    // There is nobody left to tell.
  }
}

void Scheduler::Impl::take_blocks_from_somebody() {
  if (running.size() > 1) {
    preempt(**std::max_element(running.begin(), running.end(),
                               [](const Owner& a, const Owner& b) { return a->arrival() < b->arrival(); }));
  } else if (cache.blocks() > 0) {
    cache.clear();  // the last one is shared: without the cache it need not be copied
  } else {
    end(*running.front(), JobEnd::ContextFull);
  }
}

void Scheduler::Impl::compose() {
  batch.clear();
  requests.clear();
  bool decoding = false;
  for (const Owner& job : running) {
    if (job->prefilling()) continue;
    decoding = true;
    if (job->exact()) continue;
    batch.push_back(job.get());
    requests.push_back(job->decode_request());
  }
  decoded = static_cast<int>(requests.size());
  add_prefill(decoding);
}

void Scheduler::Impl::add_prefill(bool decoding) {
  order.clear();
  for (const Owner& job : running) {
    if (job->prefilling()) order.push_back(job.get());
  }
  std::sort(order.begin(), order.end(), [](const auto* a, const auto* b) { return a->turn < b->turn; });
  const bool shared = decoding && options.prefill_share > 0;
  int room = shared ? std::min(options.prefill_share, engine.chunk()) : engine.chunk();
  bool first = true;
  for (ScheduledJob* job : order) {
    // Whole chunks only, but for the first: it has waited longest and must get on.
    const int count = first ? std::min(job->chunk(), room) : job->chunk();
    first = false;
    if (count > room) continue;
    room -= count;
    batch.push_back(job);
    requests.push_back(job->prefill_request(count));
    if (room == 0) break;
  }
}

void Scheduler::Impl::step_batch() {
  while (true) {
    compose();
    int missing = 0;
    for (size_t i = 0; i < batch.size(); ++i) missing += batch[i]->missing_blocks(requests[i]);
    if (batch.empty() || make_room(missing)) break;
    take_blocks_from_somebody();
  }
  if (batch.empty()) return;
  const Timer timer;
  const bool prefills = !requests.back().decode;
  run_batch();
  (prefills ? done.prefill_seconds : done.decode_seconds) += timer.seconds();
}

void Scheduler::Impl::run_batch() {
  bool all_logits = false;
  int count = 1;
  reads.clear();
  for (size_t i = 0; i < batch.size(); ++i) {
    const int length = batch[i]->sequence().length() + static_cast<int>(requests[i].tokens.size());
    if (batch[i]->known(length)) continue;
    if (requests[i].decode && batch[i]->job().reads) reads.add(batch[i]->sequence());
    const int wanted = batch[i]->chooser().likely();
    all_logits = all_logits || wanted == 0;
    count = std::max(count, wanted);
  }
  std::span<const float> logits;
  std::span<const LikelyToken> most_likely;
  try {
    const ReadCounter::Watch watch(reads);
    if (all_logits) {
      logits = engine.step(requests);
    } else {
      most_likely = engine.step(requests, count);
    }
  } catch (...) {
    const std::string error = current_error();
    // What a device that fails has computed before is not worth keeping.
    for (ScheduledJob* job : batch) end(*job, JobEnd::Failed, error, false);
    return;
  }
  const size_t vocab = engine.model().hp.vocab;
  for (size_t i = 0; i < batch.size(); ++i) {
    const Prospects next = all_logits ? Prospects{.logits = logits.subspan(i * vocab, vocab), .likely = {}}
                                      : Prospects{.logits = {}, .likely = most_likely.subspan(i * count, count)};
    ScheduledJob& job = *batch[i];
    try {
      advance(job, requests[i], next);
    } catch (...) {
      end(job, JobEnd::Failed, current_error());
    }
  }
}

void Scheduler::Impl::advance(ScheduledJob& job, const Engine::Request& request, const Prospects& next) {
  const int length = job.sequence().length();
  if (request.decode) {
    const int64_t weights = engine.model().decode_weight_bytes();
    if (!job.known(length)) {
      job.report().decode_bytes += engine.decode_bytes(length, job.plan()) - weights + weights / decoded;
    }
  } else {
    if (job.job().prefilled && !job.has_text()) job.job().prefilled(length, job.prompt());
    job.turn = ++turns;
    if (job.prefilling()) return;
    job.enter(JobPhase::Decode);
    // Others may begin like it while it still runs. The block that it goes on to fill would have to be copied.
    cache.keep(job.sequence(), length / kBlockTokens * kBlockTokens);
  }
  if (job.known(length)) return;
  if (request.decode) {
    ++job.report().decoded_tokens;
    ++done.decoded_tokens;
    if (job.job().reads) job.job().reads(reads.reads(job.sequence()));
  } else if (job.job().most == 0) {
    end(job, JobEnd::Limit);
    return;
  }
  choose(job, next);
}

void Scheduler::Impl::choose(ScheduledJob& job, Prospects next) {
  if (const int wanted = job.chooser().likely(); wanted > 0) {
    if (next.likely.empty()) {
      likely.resize(wanted);
      select_likely(next.logits, likely);
      next = {.logits = {}, .likely = likely};
    } else {
      next.likely = next.likely.first(wanted);
    }
  }
  if (const auto how = job.take(job.chooser().choose(next))) end(job, *how);
}

void Scheduler::Impl::step_exact() {
  order.clear();
  for (const Owner& job : running) {
    if (job->exact() && !job->prefilling()) order.push_back(job.get());
  }
  const Timer timer;
  for (ScheduledJob* job : order) {
    // Those before it may have ended by their rounds, those behind it may have had to give way.
    while (is_running(job) && !make_room(job->missing_blocks_of_round())) take_blocks_from_somebody();
    if (!is_running(job)) continue;
    const int64_t before = job->report().decoded_tokens;
    try {
      const auto how = job->advance_exact();
      if (job->job().reads) job->job().reads({.position = job->sequence().length() - 1});
      done.decoded_tokens += job->report().decoded_tokens - before;
      if (how) end(*job, *how);
    } catch (...) {
      end(*job, JobEnd::Failed, current_error());
    }
  }
  if (!order.empty()) done.decode_seconds += timer.seconds();
}

Scheduler::Scheduler(Engine& engine, const SchedulerOptions& options) {
  if (options.queue < 0 || options.prefill_share < 0) {
    fail("scheduler: queue and prefill share must be at least 0, got {} and {}", options.queue, options.prefill_share);
  }
  impl_ = std::make_unique<Impl>(engine, options);
}

Scheduler::~Scheduler() {
  while (!impl_->waiting.empty()) impl_->end(*impl_->waiting.back(), JobEnd::Cancelled);
  while (!impl_->running.empty()) impl_->end(*impl_->running.back(), JobEnd::Cancelled);
  try {
    impl_->cache.save();
  } catch (...) {  // out of memory: what is not written is computed again
  }
}

bool Scheduler::has_place(const Engine& engine, const SchedulerOptions& options, const SchedulerState& state) {
  return state.waiting < int64_t{options.queue} + engine.options().sequences - state.running;
}

void Scheduler::check(const Engine& engine, const Job& job) {
  const Hyperparameters& hp = engine.model().hp;
  if (job.prompt.empty()) fail("prompt: it is empty, at least one token is needed");
  if (job.prompt.size() > static_cast<size_t>(engine.options().context)) {
    fail("prompt: {} tokens do not fit in a context of {}", job.prompt.size(), engine.options().context);
  }
  for (const Token token : job.prompt) {
    if (token < 0 || token >= hp.vocab) fail("prompt: token {} is outside the vocabulary of {}", token, hp.vocab);
  }
  if (job.plan) job.plan->check(hp);
  if (job.exact < 0) fail("exact: {} drafts given, at least 0 is needed", job.exact);
  if (!job.chooser || !job.token || !job.finished) {
    fail("scheduler: a job needs a chooser, and functions that take its tokens and its end");
  }
  if (const int likely = job.chooser->likely(); likely < 0 || likely > engine.most_likely()) {
    fail("scheduler: the chooser wants the {} most likely tokens, expected at most {}", likely, engine.most_likely());
  }
}

bool Scheduler::submit(JobId id, Job& job) {
  check(impl_->engine, job);
  if (!has_place(impl_->engine, impl_->options, state())) return false;
  impl_->waiting.push_back(std::make_unique<ScheduledJob>(impl_->engine, id, ++impl_->arrivals, std::move(job)));
  return true;
}

void Scheduler::cancel(JobId id) {
  const auto cancel_in = [&](auto& list) {
    const auto job = std::find_if(list.begin(), list.end(), [&](const auto& other) { return other->id() == id; });
    if (job != list.end()) impl_->end(**job, JobEnd::Cancelled);
    return job != list.end();
  };
  if (!cancel_in(impl_->running)) cancel_in(impl_->waiting);
}

bool Scheduler::idle() const { return impl_->running.empty() && impl_->waiting.empty(); }

void Scheduler::step() {
  impl_->admit();
  impl_->step_batch();
  impl_->step_exact();
}

SchedulerState Scheduler::state() const {
  SchedulerState state = impl_->done;
  state.running = static_cast<int>(impl_->running.size());
  state.waiting = static_cast<int>(impl_->waiting.size());
  state.free_blocks = impl_->engine.pool().free_blocks();
  state.cached_blocks = impl_->cache.blocks();
  state.blocks = impl_->engine.pool().blocks();
  state.free_window_blocks = impl_->engine.pool().windows().free_blocks();
  state.window_blocks = std::max(0, impl_->engine.pool().windows().blocks() - 1);  // without kNoBlock
  return state;
}

void Scheduler::clear_cache() { impl_->cache.clear(); }

}  // namespace tidal
