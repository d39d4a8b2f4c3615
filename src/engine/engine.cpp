#include "engine/engine.h"

#include <algorithm>

#include "core/error.h"

namespace tidal {
namespace {

double gibi(int64_t bytes) { return static_cast<double>(bytes) / (1 << 30); }

/// Better before than after half of it is allocated.
void check_memory(const Backend& backend, const EngineMemory& memory, const EngineOptions& options) {
  const int64_t free = backend.free_bytes();
  if (memory.total() <= free) return;
  // What does not hang on where K and V are.
  const bool may_leave = options.kv_place.kind == KvPlace::Kind::All && backend.host_kv_problem().empty() &&
                         memory.total() - memory.cache < free;
  fail(
      "out of memory: a context of {} needs {:.2f} GiB (KV cache {:.2f}, states {:.2f}, sketches {:.2f}, workspace "
      "{:.2f}), {:.2f} GiB are free{}",
      options.context, gibi(memory.total()), gibi(memory.cache), gibi(memory.states), gibi(memory.sketches),
      gibi(memory.workspace), gibi(free),
      may_leave ? "; --kv-device auto keeps K and V that do not fit in host memory" : "");
}

/// Tokens of the request's chunk.
size_t chunk_rows(const Engine::Request& request) { return request.correct + request.tokens.size(); }

/// The last tokens of the chunk whose logits are wanted.
size_t logit_count(const Engine::Request& request) {
  if (request.all_logits) return chunk_rows(request);
  return request.tokens.empty() ? 0 : 1;
}

}  // namespace

Engine::Engine(Backend& backend, const Model& model, const Plan& plan, const EngineOptions& options)
    : backend_(backend), model_(model), plan_(plan), options_(options) {
  const int chunk = options.chunk.value_or(backend.prefill_rows());
  if (options.context < 1 || chunk < 1 || options.sequences < 1) {
    fail("engine: context, chunk and sequences must be at least 1, got {}, {} and {}", options.context, chunk,
         options.sequences);
  }
  for (int l = 0; l < model.hp.layers; ++l) {
    const int head_dim = model.hp.kv(l).head_dim;
    if (!backend.keeps(options.kv_type, head_dim)) {
      fail("engine: backend {} keeps no cache in {} for heads of {} elements, expected bf16", backend.name(),
           kv_type_name(options.kv_type), head_dim);
    }
  }
  plan.check(model.hp);
  options_ = with_device_blocks(backend, model.hp, plan, options);
  const EngineSizes sizes = engine_sizes(backend, model.hp, options_);
  options_.chunk = sizes.chunk;
  const EngineMemory memory = engine_memory(backend, model.hp, plan, options_);
  check_memory(backend, memory, options_);
  if (!backend.device().empty()) check_host_memory(memory, options_);
  pool_ = std::make_unique<KvPool>(backend, model.hp, sizes.blocks, sizes.states, sizes.window_blocks, options_.kv_type,
                                   sizes.device_blocks, options_.kv_place.directory);
  forward_ = std::make_unique<Forward>(backend, model, sizes.rows, options.context);
  reserve_selection(plan);
  for (auto* list : {&positions_, &logit_rows_}) list->reserve(sizes.rows);
  tokens_.reserve(sizes.rows);
  order_.reserve(options_.sequences);
  chunks_.reserve(options_.sequences);
  logits_.reserve(static_cast<size_t>(options_.sequences) * model.hp.vocab);
  likely_.reserve(static_cast<size_t>(options_.sequences) * kMostLikely);
}

void Engine::set_plan(const Plan& plan) {
  plan.check(model_.hp);
  reserve_selection(plan);
  plan_ = plan;
}

void Engine::reserve_selection(const Plan& plan) {
  if (!plan.has_sparse()) return;
  if (plan.scans()) pool_->keep_sketches(plan.policy.sketch_bits);
  if (plan.completes()) {
    if (!backend_.completes()) {
      fail("plan: the {} backend cannot estimate what is not selected", backend_.name());
    }
    pool_->keep_value_sketches();
  }
  Policy policy = plan.policy.at(options_.context);
  policy.budget = std::min(policy.budget, options_.context);  // what is not below the context selects nothing
  forward_->reserve_selection(options_.sequences, policy);
  RowCacheRoom rows = row_cache_room(model_.hp, plan, options_, pool_->blocks() - pool_->device_blocks());
  if (rows.rows == 0) return;
  rows.memory = pool_->layers()[static_cast<size_t>(rows.layers.front())].memory;
  backend_.cache_rows(rows);
}

void Engine::check(std::span<const Request> requests) const {
  if (requests.empty() || static_cast<int>(requests.size()) > options_.sequences) {
    fail("engine: a step takes 1 to {} sequences, got {}", options_.sequences, requests.size());
  }
  size_t rows = 0;
  for (size_t i = 0; i < requests.size(); ++i) {
    const Request& request = requests[i];
    if (!request.sequence) fail("engine: request {} of the step names no sequence", i);
    if (&request.sequence->pool() != pool_.get()) fail("engine: the sequence of request {} is another engine's", i);
    for (size_t j = 0; j < i; ++j) {
      if (requests[j].sequence == request.sequence) {
        fail("engine: requests {} and {} are of the same sequence, a step takes each once", j, i);
      }
    }
    if (request.plan) request.plan->check(model_.hp);
    const int64_t length = request.sequence->length() + static_cast<int64_t>(request.tokens.size());
    const int polluted = request.sequence->length() - request.sequence->clean();
    const bool all = request.correct == polluted;
    if (request.correct < 0 || request.correct > polluted || (request.correct > 0 && !request.tokens.empty() && !all)) {
      fail("engine: {} tokens to correct with {} new ones, but {} are polluted", request.correct, request.tokens.size(),
           polluted);
    }
    const size_t chunk = chunk_rows(request);
    if (chunk == 0) fail("engine: a step needs at least one token for every sequence");
    if (request.decode && (request.tokens.size() != 1 || request.correct > 0))
      fail("engine: decoding takes one token a step");
    if (length > options_.context) fail("engine: {} tokens do not fit in a context of {}", length, options_.context);
    for (const Token token : request.tokens) {
      if (token < 0 || token >= model_.hp.vocab) {
        fail("engine: token {} is outside the vocabulary of {}", token, model_.hp.vocab);
      }
    }
    if (chunk > static_cast<size_t>(*options_.chunk)) {
      fail("engine: {} tokens in one chunk, at most {}", chunk, *options_.chunk);
    }
    rows += chunk;
  }
  if (const int most = engine_sizes(backend_, model_.hp, options_).rows; rows > static_cast<size_t>(most)) {
    fail("engine: {} tokens in one step, at most {}", rows, most);
  }
}

void Engine::prepare(std::span<const Request> requests) {
  check(requests);
  for (const Request& request : requests) {
    const int due = plan_of(request).correct;
    const Sequence& sequence = *request.sequence;
    // In passes of their own, so that what a sequence gets does not depend on who else is due.
    if (request.decode && due > 0 && sequence.length() - sequence.clean() >= due) correct(*request.sequence);
  }
}

std::span<const float> Engine::step(std::span<const Request> requests) {
  prepare(requests);
  run(requests, 0);
  return in_request_order(requests, model_.hp.vocab, logits_, reordered_);
}

std::span<const LikelyToken> Engine::step(std::span<const Request> requests, int count) {
  if (count < 1 || count > most_likely()) {
    fail("engine: {} likely tokens of a step asked for, expected 1 to {}", count, most_likely());
  }
  prepare(requests);
  run(requests, count);
  return in_request_order(requests, count, likely_, reordered_likely_);
}

void Engine::add_chunk(const Request& request) {
  const Sequence& sequence = *request.sequence;
  Chunk chunk;
  chunk.sequence = &sequence;
  chunk.first_row = static_cast<int>(tokens_.size());
  chunk.rows = static_cast<int>(chunk_rows(request));
  chunk.position = request.correct > 0 ? sequence.clean() : sequence.length();
  tables_.set(*pool_, sequence.blocks().first(blocks_for(chunk.context())), chunk);
  chunk.cached = std::max(chunk.context(), sequence.length());
  if (pool_->windows()) chunk.window_blocks = sequence.windows().blocks().first(chunk.blocks.size());
  if (pool_->states()) chunk.state = request.sequence->states().begin();
  if (const Plan& plan = plan_of(request); request.decode && plan.sparse_at(chunk.context())) {
    chunk.policy = plan.policy.at(chunk.context());
    chunk.roles = plan.roles;
  }
  const auto again = sequence.tokens().subspan(chunk.position, request.correct);
  tokens_.insert(tokens_.end(), again.begin(), again.end());
  tokens_.insert(tokens_.end(), request.tokens.begin(), request.tokens.end());
  for (int i = 0; i < chunk.rows; ++i) {
    positions_.push_back(chunk.position + i);
    if (i + static_cast<int>(logit_count(request)) >= chunk.rows) logit_rows_.push_back(chunk.first_row + i);
  }
  chunks_.push_back(chunk);
}

void Engine::run(std::span<const Request> requests, int count) {
  const auto begin = [](const Request& request) {
    return request.correct > 0 ? request.sequence->clean() : request.sequence->length();
  };
  try {
    for (const Request& request : requests) request.sequence->windows().hold(begin(request));
    // All of them before anybody has room for its chunk: one chunk is all that there may be room for.
    for (const Request& request : requests) restore(*request.sequence, begin(request));
    for (const Request& request : requests) {
      Sequence& sequence = *request.sequence;
      const int first = begin(request);
      sequence.reserve(first, static_cast<int>(request.tokens.size()));
      sequence.windows().reserve(first, first + static_cast<int>(chunk_rows(request)));
      reserve_state(request);
    }
    // What makes room for one may move another's.
    for (const Request& request : requests) {
      const int first = begin(request), end = first + static_cast<int>(chunk_rows(request));
      pool_->prepare(request.sequence->blocks().first(blocks_for(end)), static_cast<size_t>(first / kBlockTokens));
    }
    run_reserved(requests, count);
  } catch (...) {
    // What some sequences have reserved must not starve the others.
    for (const Request& request : requests) request.sequence->release_reserved();
    throw;
  }
}

void Engine::run_reserved(std::span<const Request> requests, int count) {
  // Short chunks first, as Batch promises; the sort must be stable so that a batch is the same every time.
  order_.clear();
  for (const Request& request : requests) order_.push_back(&request);
  for (size_t i = 1; i < order_.size(); ++i) {
    for (size_t j = i; j > 0 && chunk_rows(*order_[j]) < chunk_rows(*order_[j - 1]); --j) {
      std::swap(order_[j], order_[j - 1]);
    }
  }
  tokens_.clear();
  positions_.clear();
  logit_rows_.clear();
  chunks_.clear();
  tables_.clear();
  for (const Request* request : order_) {
    if (request->plan) reserve_selection(*request->plan);
    add_chunk(*request);
  }
  const Batch batch{tokens_, positions_, chunks_, logit_rows_};
  if (count > 0) {
    likely_.resize(logit_rows_.size() * count);
    forward_->run(batch, pool_->layers(), count, likely_, observer_);
  } else {
    logits_.resize(logit_rows_.size() * model_.hp.vocab);
    forward_->run(batch, pool_->layers(), logits_, observer_);
  }
  for (size_t c = 0; c < chunks_.size(); ++c) {
    Sequence& sequence = *order_[c]->sequence;
    if (order_[c]->correct > 0) sequence.mark_clean(sequence.clean() + order_[c]->correct);
    sequence.append(order_[c]->tokens, !chunks_[c].sparse());
    record(sequence, chunks_[c]);
    end_state(sequence, chunks_[c]);
    end_windows(sequence, chunks_[c]);
  }
}

template <typename Value>
std::span<const Value> Engine::in_request_order(std::span<const Request> requests, int width,
                                                const std::vector<Value>& values, std::vector<Value>& reordered) const {
  bool same = true;
  for (size_t i = 0; i < requests.size(); ++i) same = same && order_[i] == &requests[i];
  if (same) return values;
  // By now the sequences have grown: the counts come from the batch.
  reordered.clear();
  for (const Request& request : requests) {
    size_t chunk = 0;
    while (order_[chunk] != &request) ++chunk;
    const int first = chunks_[chunk].first_row, last = first + chunks_[chunk].rows;
    for (size_t row = 0; row < logit_rows_.size(); ++row) {
      if (logit_rows_[row] < first || logit_rows_[row] >= last) continue;
      const auto begin = values.begin() + static_cast<ptrdiff_t>(row) * width;
      reordered.insert(reordered.end(), begin, begin + width);
    }
  }
  return reordered;
}

void Engine::correct(Sequence& sequence) {
  if (&sequence.pool() != pool_.get()) fail("engine: the sequence to correct is another engine's");
  while (sequence.clean() < sequence.length()) {
    const int count = text_rows(sequence.clean(), std::min(chunk(), sequence.length() - sequence.clean()));
    const Request request{.sequence = &sequence, .tokens = {}, .correct = count};
    run({&request, 1}, 0);
  }
}

int Engine::reusable(int count) const {
  if (pool_->states()) return count - 1;
  const int few = backend_.decode_rows();
  return count <= few ? count - 1 : count - few - 1;
}

std::span<const float> Engine::prefill(Sequence& sequence, std::span<const Token> tokens,
                                       const std::function<bool(int done)>& progress) {
  if (tokens.empty()) fail("prompt: it is empty, at least one token is needed");
  if (sequence.length() + static_cast<int64_t>(tokens.size()) > options_.context) {
    fail("prompt: {} tokens do not fit in a context of {} that already holds {}", tokens.size(), options_.context,
         sequence.length());
  }
  if (plan_.correct > 0) correct(sequence);
  std::span<const float> logits;
  for (size_t done = 0; done < tokens.size();) {
    const size_t left = tokens.size() - done, most = std::min<size_t>(chunk(), left);
    const auto count = static_cast<size_t>(prompt_rows(sequence.length(), static_cast<int>(most), most == left));
    const Request request{.sequence = &sequence, .tokens = tokens.subspan(done, count)};
    logits = step({&request, 1});
    done += count;
    if (progress && !progress(static_cast<int>(done))) break;
  }
  return logits;
}

std::span<const float> Engine::decode(Sequence& sequence, Token token) {
  const Request request{.sequence = &sequence, .tokens = {&token, 1}, .decode = true};
  return step({&request, 1});
}

std::span<const LikelyToken> Engine::decode(Sequence& sequence, Token token, int count) {
  const Request request{.sequence = &sequence, .tokens = {&token, 1}, .decode = true};
  return step({&request, 1}, count);
}

int64_t Engine::decode_bytes(int context, const Plan& plan) const {
  const Hyperparameters& hp = model_.hp;
  const Policy policy = plan.policy.at(context);
  const int filled = context / kBlockTokens * kBlockTokens;
  const int64_t sketch = SketchLayout{hp.head_dim, policy.sketch_bits}.bytes() * hp.kv_heads * (filled / kBlockTokens);
  const bool sparse_step = plan.sparse_at(context);
  int64_t read = 0, sketches = 0;
  int selected = 0;  // by the last layer that chose
  for (int l = 0; l < hp.layers; ++l) {
    if (hp.recurs(l)) continue;
    const Role role = plan.roles[static_cast<size_t>(l)];
    const bool sparse = sparse_step && reads_selected(role);
    if (role == Role::Select) selected = policy.budget;
    if (role == Role::Scan) selected = scan_policy(policy, context).budget;
    // With one set per query head, the heads of a group read their own rows.
    KvShape kv = hp.kv(l);
    if (sparse && policy.scope == Scope::Head) kv.heads = hp.heads;
    const int64_t row = kv.row_bytes(options_.kv_type);
    read += row * (sparse ? selected : context - hp.first_seen(l, context - 1));
    if (!sparse || role != Role::Scan) continue;
    sketches += sketch;
    if (!policy.completion) continue;
    // Keys of what is ranked and not selected; means, codes and scales.
    const ValueSketchLayout values{hp.head_dim};
    const auto tier = [&](int budgets) { return tier_policy(policy, context, budgets).budget - selected; };
    read += row / 2 * tier(policy.completion.ranked);
    sketches += hp.kv_heads * (int64_t{values.scales_offset()} * (filled / kBlockTokens) +
                               int64_t{values.row_bytes() + 2} * tier(policy.completion.estimated));
  }
  return model_.decode_weight_bytes() + read + sketches + hp.state_bytes();
}

}  // namespace tidal
