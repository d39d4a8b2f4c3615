// What the engine does for recurrent layers: their state goes forward only, so earlier ones are saved, and computed
// again from the last saved one.
#include <algorithm>

#include "core/error.h"
#include "engine/engine.h"

namespace tidal {
namespace {

constexpr int kSaveEvery = 256;  // tokens; a state is as large as the K/V of some thousand

}  // namespace

int Engine::prompt_rows(int position, int rows, bool last) const {
  if (!pool_->states() || !last) return rows;
  // The last token is computed whatever a cache has, for its logits.
  const int to_block = (position + rows - 1) / kBlockTokens * kBlockTokens - position;
  return to_block >= kBlockTokens ? to_block : rows;
}

int Engine::text_rows(int position, int rows) const {
  return pool_->states() ? std::min(rows, kSaveEvery - position % kSaveEvery) : rows;
}

void Engine::restore(Sequence& sequence, int position) {
  if (!pool_->states() || sequence.states().position() == position) return;
  int at = sequence.begin_of_pass(position);
  sequence.states().return_to(at);
  while (at < position) {
    const int most = std::min(chunk(), position - at);
    // What is clean is computed again as it was computed, so that its K/V stay as they are.
    const int clean = sequence.clean() - at;
    const int rows = clean > 0 ? sequence.states().rows_again(at, std::min(most, clean), backend_.decode_rows())
                               : text_rows(at, most);
    run_again(sequence, at, rows);
    at += rows;
  }
}

void Engine::run_again(Sequence& sequence, int position, int rows) {
  sequence.reserve(position, 0);
  SequenceStates& states = sequence.states();
  states.reserve();
  const auto tokens = sequence.tokens().subspan(static_cast<size_t>(position), static_cast<size_t>(rows));
  tokens_.assign(tokens.begin(), tokens.end());
  positions_.clear();
  for (int i = 0; i < rows; ++i) positions_.push_back(position + i);
  Chunk chunk;
  chunk.rows = rows;
  chunk.position = position;
  chunk.blocks = sequence.blocks().first(blocks_for(chunk.context()));
  chunk.cached = std::max(chunk.context(), sequence.length());
  chunk.state = states.begin();
  // Nobody watches: it is none of the passes that were asked for.
  forward_->run({tokens_, positions_, {&chunk, 1}, {}}, pool_->layers(), {});
  sequence.mark_clean(std::max(sequence.clean(), chunk.context()));
  end_state(sequence, chunk);
}

void Engine::reserve_state(const Request& request) {
  if (!pool_->states()) return;
  SequenceStates& states = request.sequence->states();
  const int clean = request.sequence->clean();
  // Sparse tokens will be corrected from here on, and drafts that do not hold are taken back.
  const bool pollutes = request.decode && plan_of(request).sparse_at(request.sequence->length() + 1);
  const bool drafts = request.all_logits && request.correct + request.tokens.size() > 1;
  if (states.position() == clean && (pollutes || drafts)) states.mark();
  states.reserve();
}

void Engine::end_state(Sequence& sequence, const Chunk& chunk) {
  if (!pool_->states()) return;
  SequenceStates& states = sequence.states();
  const int end = chunk.context();
  states.advance(end);
  if (sequence.clean() < end) return;
  states.record(chunk.position, end, backend_.decode_rows());
  // At the ends of blocks: only there others can go on from it (PrefixCache).
  if (end % kBlockTokens == 0 && (chunk.rows >= kBlockTokens || end % kSaveEvery == 0)) states.save();
}

}  // namespace tidal
