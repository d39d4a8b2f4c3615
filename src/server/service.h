// From what an API asks for to jobs of the scheduler, and back from tokens to text.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "engine/scheduler_thread.h"
#include "server/answer_chooser.h"
#include "server/event_stream.h"
#include "server/http/http_server.h"
#include "server/read_trace.h"
#include "text/sampler.h"
#include "text/tokenizer.h"

namespace tidal::server {

/// One text to be continued, whatever the API.
struct Generation {
  std::vector<Token> prompt;
  SamplerOptions sampler{};
  std::vector<std::string> stops{};
  std::vector<Token> kept_tokens{};  ///< control tokens that are part of the text
  int64_t most = -1;                 ///< tokens; -1: until it ends
  int top_logprobs = -1;             ///< AnswerChooser's
  std::optional<Plan> plan{};        ///< nullopt: the server's
  int exact = 0;                     ///< most drafts of a round; 0: decodes by the plan
  bool use_cache = true;
  bool reads = false;  ///< the reply is told what decoding reads
};

/// A part of an answer's text.
struct Piece {
  std::string text;
  std::vector<TokenLogprob> logprobs;
  std::vector<Token> tokens{};  ///< that it is of; of one that became two pieces' text, in the first
};

/// How an answer ended, and what it cost.
struct Ending {
  JobEnd end = JobEnd::EndToken;
  std::string stop;  ///< the stop string that ended it
  int64_t tokens = 0;
  JobReport report;

  /// Whether it ended by itself, not by a limit.
  bool natural() const { return end == JobEnd::EndToken || end == JobEnd::Stopped; }
};

/// Where one request's answers go: an API's form of them. Called by one thread at a time.
class Reply {
 public:
  virtual ~Reply() = default;
  virtual void piece(size_t index, const Piece& piece) = 0;
  virtual void ended(size_t index, const Ending& ending) = 0;
  /// Whether it can be told what answers read.
  virtual bool takes_reads() const { return false; }
  /// For generations that ask for it. Texts of the prompt come as it is computed.
  virtual void reads(size_t /*index*/, const Reads& /*reads*/) {}
  /// Called instead of anything further when an answer cannot be finished.
  virtual void failed(int status, const std::string& message) = 0;
};

/// What the server is made of. All must outlive the service.
struct ServiceParts {
  Engine& engine;
  Tokenizer& tokenizer;
  SchedulerOptions scheduler{};
  SamplerOptions sampler{};  ///< defaults of requests
  std::string model{};       ///< its name, for clients
  int exact = 0;             ///< of requests that do not choose
  /// The plan of a request's "tidal" object: attention ("" for the server's) and budget ("" likewise). Throws Error.
  std::function<Plan(const std::string& attention, const std::string& budget)> make_plan{};
};

class Service {
 public:
  explicit Service(ServiceParts parts);
  ~Service();

  const ServiceParts& parts() const { return parts_; }
  const Tokenizer& tokenizer() const { return parts_.tokenizer; }
  int context() const { return parts_.engine.options().context; }
  SchedulerState state() const { return scheduler_->state(); }

  /// Starts a job for each generation; `reply` gets their pieces. When the client of `exchange` goes they are
  /// cancelled. Throws ApiError, then none runs: 400 for what cannot be, 429 when too many wait.
  void start(std::vector<Generation> generations, const std::shared_ptr<Reply>& reply,
             const std::shared_ptr<http::Exchange>& exchange);
  /// An answer that comes as events, with comments where it is quiet for long.
  std::shared_ptr<EventStream> open_stream(std::shared_ptr<http::Exchange> exchange);
  /// Time since the start, in seconds.
  double uptime() const;

 private:
  struct Answer;

  Job make_job(Generation& generation, size_t index, const std::shared_ptr<Reply>& reply,
               const std::shared_ptr<std::atomic<bool>>& withdrawn);
  /// Has `reply` told what the job reads. What it returns wants to know the job's tokens, and gives the texts that are
  /// left at the end.
  std::shared_ptr<ReadTrace> trace_reads(Job& job, size_t index, const std::shared_ptr<Reply>& reply,
                                         const std::shared_ptr<std::atomic<bool>>& withdrawn) const;
  void keep_streams_alive();

  ServiceParts parts_;
  std::chrono::steady_clock::time_point started_ = std::chrono::steady_clock::now();
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false;
  std::vector<std::weak_ptr<EventStream>> streams_;
  std::unique_ptr<SchedulerThread> scheduler_;
  std::thread ticker_;
};

}  // namespace tidal::server
