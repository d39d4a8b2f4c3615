#include "server/service.h"

#include <algorithm>
#include <random>

#include "core/error.h"
#include "generation/answer_text.h"
#include "server/error.h"

namespace tidal::server {

constexpr std::chrono::seconds kTick{1};

/// One answer on its way from tokens to text. Only the scheduler's thread has it.
struct Service::Answer {
  AnswerChooser* chooser = nullptr;  // the job's
  AnswerText text;
  std::vector<TokenLogprob> logprobs{};  // of tokens whose text is still held back
  std::vector<Token> held{};             // these
  int64_t tokens = 0;
  std::shared_ptr<std::atomic<bool>> withdrawn;  // the request was refused after all: its reply is not ours any more
};

Service::Service(ServiceParts parts)
    : parts_(std::move(parts)),
      scheduler_(std::make_unique<SchedulerThread>(parts_.engine, parts_.scheduler)),
      ticker_([this] { keep_streams_alive(); }) {}

Service::~Service() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  ticker_.join();
}

double Service::uptime() const {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - started_).count();
}

std::shared_ptr<ReadTrace> Service::trace_reads(Job& job, size_t index, const std::shared_ptr<Reply>& reply,
                                                const std::shared_ptr<std::atomic<bool>>& withdrawn) const {
  auto trace = std::make_shared<ReadTrace>(parts_.tokenizer, job.prompt);
  job.prefilled = [trace, reply, index, withdrawn](int done, int) {
    if (!*withdrawn) reply->reads(index, trace->texts_before(static_cast<size_t>(done)));
  };
  job.reads = [trace, reply, index, withdrawn](const StepReads& step) {
    if (*withdrawn) return;
    Reads reads = trace->texts_before(static_cast<size_t>(step.position) + 1);
    reads.step = step;
    reply->reads(index, reads);
  };
  return trace;
}

Job Service::make_job(Generation& generation, size_t index, const std::shared_ptr<Reply>& reply,
                      const std::shared_ptr<std::atomic<bool>>& withdrawn) {
  SamplerOptions options = generation.sampler;
  // Drafts of exact mode are drawn by a copy of the sampler, which must not draw a seed of its own.
  if (options.seed == SamplerOptions{}.seed) options.seed = std::random_device{}();
  options.seed += static_cast<uint32_t>(index);
  // Behind the last word of a grammar nothing but the end is left.
  if (!options.grammar.empty()) options.ignore_end = false;
  Sampler sampler(parts_.tokenizer, options);
  if (options.has_penalties()) sampler.accept(generation.prompt);

  auto chooser = std::make_unique<AnswerChooser>(std::move(sampler), parts_.tokenizer, generation.top_logprobs);
  const auto answer =
      std::make_shared<Answer>(Answer{chooser.get(), AnswerText(std::move(generation.stops)), {}, {}, 0, withdrawn});
  const auto give = [answer, reply, index](std::string text) {
    for (TokenLogprob& one : answer->chooser->take_logprobs()) answer->logprobs.push_back(std::move(one));
    if (text.empty() || *answer->withdrawn) return;
    reply->piece(index, {std::move(text), std::exchange(answer->logprobs, {}), std::exchange(answer->held, {})});
  };
  Job job;
  job.prompt = std::move(generation.prompt);
  job.most = generation.most;
  job.plan = std::move(generation.plan);
  job.exact = generation.exact;
  job.use_cache = generation.use_cache;
  job.chooser = std::move(chooser);
  const auto trace = generation.reads ? trace_reads(job, index, reply, withdrawn) : nullptr;
  job.token = [this, answer, give, trace, kept = std::move(generation.kept_tokens)](Token token) {
    ++answer->tokens;
    if (trace) trace->add(token);
    answer->held.push_back(token);
    const bool keep = std::find(kept.begin(), kept.end(), token) != kept.end();
    give(answer->text.push(parts_.tokenizer.piece(token, keep)));
    return !answer->text.stopped();
  };
  job.finished = [answer, give, trace, reply, index](JobEnd end, const JobReport& report) {
    if (*answer->withdrawn) return;
    if (end == JobEnd::Failed) return reply->failed(500, report.error);
    if (end == JobEnd::Cancelled) return reply->failed(503, "the server is shutting down");
    give(answer->text.finish());
    while (trace && !trace->done()) reply->reads(index, trace->rest());
    reply->ended(index, {end, answer->text.stop(), answer->tokens, report});
  };
  return job;
}

void Service::start(std::vector<Generation> generations, const std::shared_ptr<Reply>& reply,
                    const std::shared_ptr<http::Exchange>& exchange) {
  const auto withdrawn = std::make_shared<std::atomic<bool>>(false);
  std::vector<Job> jobs;
  for (size_t i = 0; i < generations.size(); ++i) {
    if (generations[i].reads && !reply->takes_reads()) {
      refuse("tidal.reads",
             "'tidal.reads': only streams of /v1/chat/completions and /v1/completions tell what is read");
    }
    const size_t length = generations[i].prompt.size();
    if (length == 0) refuse("", "the prompt is empty, expected at least one token");
    if (length >= static_cast<size_t>(context())) {
      throw ApiError(400, "exceed_context_size_error",
                     fmt::format("the prompt has {} tokens, which leave no room for an answer in a context of {}",
                                 length, context()),
                     "", {{"n_prompt_tokens", static_cast<int64_t>(length)}, {"n_ctx", context()}});
    }
    try {
      jobs.push_back(make_job(generations[i], i, reply, withdrawn));
    } catch (const Error& error) {
      refuse("", "{}", error.what());
    }
  }
  std::vector<JobId> ids;
  const auto cancel = [this](const std::vector<JobId>& ids) {
    for (const JobId id : ids) scheduler_->cancel(id);
  };
  for (Job& job : jobs) {
    std::optional<JobId> id;
    try {
      id = scheduler_->submit(std::move(job));
    } catch (const Error& error) {
      *withdrawn = true;
      cancel(ids);
      refuse("", "{}", error.what());
    }
    if (!id) {
      *withdrawn = true;
      cancel(ids);
      refuse_for_now();
    }
    ids.push_back(*id);
  }
  exchange->on_gone([cancel, ids] { cancel(ids); });
}

std::shared_ptr<EventStream> Service::open_stream(std::shared_ptr<http::Exchange> exchange) {
  auto stream = std::make_shared<EventStream>(std::move(exchange));
  const std::lock_guard lock(mutex_);
  std::erase_if(streams_, [](const auto& known) { return known.expired(); });
  streams_.push_back(stream);
  return stream;
}

void Service::keep_streams_alive() {
  std::unique_lock lock(mutex_);
  while (!wake_.wait_for(lock, kTick, [this] { return stopping_; })) {
    for (const auto& known : streams_) {
      if (const auto stream = known.lock()) stream->comment_if_quiet();
    }
  }
}

}  // namespace tidal::server
