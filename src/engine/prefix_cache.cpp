#include "engine/prefix_cache.h"

#include <algorithm>
#include <array>
#include <map>
#include <utility>
#include <vector>

namespace tidal {

/// One block. Every node stands before its children in the ring, so the last of the ring is a leaf.
struct PrefixCache::Node {
  struct Lexicographic {
    bool operator()(std::span<const Token> a, std::span<const Token> b) const {
      return std::lexicographical_compare(a.begin(), a.end(), b.begin(), b.end());
    }
  };

  Node* parent = nullptr;
  Node* newer = this;
  Node* older = this;
  BlockId block = 0;
  int count = 0;              // tokens; only a leaf has fewer than kBlockTokens
  int clean = 0;              // leading positions of the block that are clean
  bool saved = false;         // or not worth it
  StateId state = -1;         // behind the block
  BlockId window = kNoBlock;  // of layers with a window, where they keep that only
  uint64_t used = 0;          // number of the touch() that was the last
  std::array<Token, kBlockTokens> content = {};
  // By their own content: in this order the longest common prefixes are with the neighbours of a text.
  std::map<std::span<const Token>, std::unique_ptr<Node>, Lexicographic> children;

  std::span<const Token> tokens() const { return {content.data(), static_cast<size_t>(count)}; }

  void leave_ring() {
    newer->older = older;
    older->newer = newer;
  }
  void enter_ring_behind(Node* node) {
    newer = node;
    older = node->older;
    newer->older = this;
    older->newer = this;
  }
};

struct PrefixCache::Match {
  Node* node = nullptr;
  int count = 0;
};

PrefixCache::PrefixCache(KvPool& pool, SessionStore* store)
    : pool_(pool), store_(store), root_(std::make_unique<Node>()) {
  if (pool_.states()) pool_.states().on_shortage(this, [this](StateId wanted) { return give_state(wanted); });
  if (pool_.windows()) pool_.windows().on_shortage(this, [this](WindowPool::Shortage) { return give_window(); });
}

PrefixCache::~PrefixCache() {
  clear();
  if (pool_.states()) pool_.states().on_shortage(this, {});
  if (pool_.windows()) pool_.windows().on_shortage(this, {});
}

PrefixCache::Match PrefixCache::best_match(const Node& node, std::span<const Token> tokens, bool clean) {
  Match best;
  // True while children farther on may have more to offer.
  const auto look = [&](Node& child) {
    const int common = common_prefix(child.tokens(), tokens);
    if (common <= best.count) return false;
    const int usable = clean ? std::min(common, child.clean) : common;
    if (usable > best.count) best = {&child, usable};
    return true;
  };
  const auto middle = node.children.lower_bound(tokens);
  for (auto next = middle; next != node.children.end() && look(*next->second); ++next) {
  }
  for (auto next = middle; next != node.children.begin() && look(*std::prev(next)->second); --next) {
  }
  return best;
}

Sequence PrefixCache::find(std::span<const Token> tokens, int most, bool clean, int capacity) {
  tokens = tokens.first(std::min(tokens.size(), static_cast<size_t>(std::max(most, 0))));
  if (store_) restore(tokens, clean);
  return find_in_memory(tokens, clean, capacity);
}

void PrefixCache::restore(std::span<const Token> tokens, bool clean) {
  const SessionStore::Found found = store_->find(tokens, static_cast<int>(tokens.size()), clean);
  if (found.length < SessionStore::kLeastTokens) return;
  const Sequence known = find_in_memory(tokens, clean, 0);
  if (found.length < known.length() + SessionStore::kLeastTokens) return;
  if (!make_room(found.missing_blocks(known.length()))) return;
  const Sequence restored = store_->load(found, tokens, known);
  keep(restored);
  // It came from there.
  Node* node = root_.get();
  for (int first = 0; first + kBlockTokens <= restored.length(); first += kBlockTokens) {
    node = node->children.find(restored.tokens().subspan(first, kBlockTokens))->second.get();
    node->saved = true;
  }
}

Sequence PrefixCache::find_in_memory(std::span<const Token> tokens, bool clean, int capacity) {
  std::vector<BlockId> blocks, windows;
  Node* node = root_.get();
  std::vector<SequenceStates::Saved> states;
  int length = 0, clean_length = 0;
  while (static_cast<size_t>(length) < tokens.size()) {
    const auto rest = tokens.subspan(length);
    const auto here = rest.first(std::min<size_t>(rest.size(), kBlockTokens));
    const Match match = best_match(*node, here, clean);
    if (match.count == 0) break;
    node = match.node;
    if (clean_length == length) clean_length += std::min(match.count, node->clean);
    length += match.count;
    blocks.push_back(node->block);
    windows.push_back(node->window);
    if (match.count < kBlockTokens) break;
    if (node->state >= 0) states.push_back({length, node->state});
  }
  touch(node);
  if (pool_.states()) {
    length = states.empty() ? 0 : states.back().position;
    blocks.resize(static_cast<size_t>(blocks_for(length)));
    clean_length = std::min(clean_length, length);
  }
  Sequence found(pool_, capacity, tokens.first(length), blocks, clean_length, windows);
  if (pool_.windows()) {
    found.truncate(found.windows().nearest(length));
    found.windows().save(found.clean());
  }
  for (const auto& [position, state] : states) found.states().save(position, state);
  return found;
}

void PrefixCache::keep(const Sequence& sequence, int length) {
  Node* node = root_.get();
  for (int first = 0; first < length; first += kBlockTokens) {
    const int count = std::min(kBlockTokens, length - first);
    const auto tokens = sequence.tokens().subspan(first, count);
    const auto index = static_cast<size_t>(first / kBlockTokens);
    const auto windows = sequence.windows().blocks();
    insert(node, tokens, sequence.blocks()[index], index < windows.size() ? windows[index] : kNoBlock,
           std::clamp(sequence.clean() - first, 0, count));
    if (count < kBlockTokens) break;
    node = node->children.find(tokens)->second.get();
    if (const StateId state = sequence.states().saved_at(first + count); state >= 0 && node->state < 0) {
      pool_.states().add_reference(state);
      node->state = state;
    }
  }
  touch(node);
}

void PrefixCache::insert(Node* parent, std::span<const Token> tokens, BlockId block, BlockId window, int clean) {
  if (const auto known = parent->children.find(tokens); known != parent->children.end()) {
    Node& node = *known->second;
    // Both kinds of blocks are of the same computation.
    const bool lacks_window = node.window == kNoBlock && window != kNoBlock;
    if (node.clean > clean || (node.clean == clean && !lacks_window)) return;
    pool_.add_reference(block);
    pool_.release(node.block);
    node.block = block;
    set_window(node, window);
    node.clean = clean;
    node.saved = false;
  } else {
    if (tokens.size() < kBlockTokens) {
      // A longer one that is as clean makes this one superfluous.
      for (auto next = parent->children.lower_bound(tokens);
           next != parent->children.end() && common_prefix(next->first, tokens) == static_cast<int>(tokens.size());
           ++next) {
        if (next->second->clean >= clean) return;
      }
    }
    auto node = std::make_unique<Node>();
    node->parent = parent;
    node->block = block;
    set_window(*node, window);
    node->count = static_cast<int>(tokens.size());
    node->clean = clean;
    std::copy(tokens.begin(), tokens.end(), node->content.begin());
    Node* inserted = node.get();
    parent->children.emplace(inserted->tokens(), std::move(node));
    inserted->enter_ring_behind(root_.get());
    pool_.add_reference(block);
    ++blocks_;
  }
  if (parent->children.size() == 1) return;
  // Shorter ones that this one makes superfluous; partly filled, they have no children.
  for (size_t count = 1; count < tokens.size(); ++count) {
    const auto shorter = parent->children.find(tokens.first(count));
    if (shorter != parent->children.end() && shorter->second->clean <= clean) remove(shorter->second.get());
  }
}

void PrefixCache::set_window(Node& node, BlockId window) {
  if (window != kNoBlock) pool_.windows().add_reference(window);
  if (node.window != kNoBlock) pool_.windows().release(node.window);
  node.window = window;
}

void PrefixCache::touch(Node* node) {
  ++touches_;
  // From the leaf up, so that each ends before its children.
  for (; node != root_.get(); node = node->parent) {
    node->leave_ring();
    node->enter_ring_behind(root_.get());
    node->used = touches_;
  }
}

void PrefixCache::remove(Node* leaf) {
  leaf->leave_ring();
  pool_.release(leaf->block);
  set_window(*leaf, kNoBlock);
  if (leaf->state >= 0) pool_.states().release(leaf->state);
  --blocks_;
  leaf->parent->children.erase(leaf->parent->children.find(leaf->tokens()));
}

void PrefixCache::remove_below(Node* node) {
  Node* next = node;
  while (next != node || !node->children.empty()) {
    if (!next->children.empty()) {
      next = next->children.begin()->second.get();
      continue;
    }
    Node* parent = next->parent;
    remove(next);
    next = parent;
  }
}

bool PrefixCache::give_state(StateId wanted) {
  for (Node* node = root_->newer; node != root_.get(); node = node->newer) {
    if (node->state < 0 || (pool_.states().references(node->state) > 1 && node->state != wanted)) continue;
    pool_.states().release(std::exchange(node->state, -1));
    return true;
  }
  return false;
}

bool PrefixCache::give_window() {
  const auto gives = [&](const Node& node) {
    return node.window != kNoBlock && pool_.windows().references(node.window) == 1;
  };
  for (Node* node = root_->newer; node != root_.get(); node = node->newer) {
    if (!gives(*node)) continue;
    // Of a text the beginning first: who goes on with it needs its end.
    Node* first = node;
    for (Node* above = node->parent; above != root_.get() && above->used == node->used; above = above->parent) {
      if (gives(*above)) first = above;
    }
    set_window(*first, kNoBlock);
    return true;
  }
  return false;
}

bool PrefixCache::make_room(int blocks) {
  const auto free_enough = [&] { return pool_.free_blocks() >= blocks; };
  const auto ours_alone = [&](const Node& node) { return pool_.references(node.block) == 1; };
  if (free_enough()) return true;
  for (Node* node = root_->newer; node != root_.get() && !free_enough();) {
    Node* newer = node->newer;
    if (node->children.empty() && ours_alone(*node)) {
      save(node);
      remove(node);
    }
    node = newer;
  }
  // What is left and ours alone lies above blocks that somebody else holds; without the one the others are of no use
  // here.
  for (Node* node = root_->newer; node != root_.get() && !free_enough();) {
    if (!ours_alone(*node)) {
      node = node->newer;
      continue;
    }
    remove_below(node);
    Node* newer = node->newer;
    remove(node);
    node = newer;
  }
  return free_enough();
}

void PrefixCache::save(Node* leaf) {
  if (!store_ || leaf->saved) return;
  std::vector<Node*> path;
  for (Node* node = leaf; node != root_.get(); node = node->parent) path.push_back(node);
  std::vector<Token> tokens;
  std::vector<BlockId> blocks;
  int clean = 0;
  for (auto node = path.rbegin(); node != path.rend(); ++node) {
    if (clean == static_cast<int>(tokens.size())) clean += (*node)->clean;
    tokens.insert(tokens.end(), (*node)->tokens().begin(), (*node)->tokens().end());
    blocks.push_back((*node)->block);
    (*node)->saved = true;
  }
  store_->keep(Sequence(pool_, 0, tokens, blocks, clean));
}

void PrefixCache::save() {
  for (Node* node = root_->newer; node != root_.get(); node = node->newer) {
    if (node->children.empty()) save(node);
  }
}

void PrefixCache::clear() {
  while (root_->newer != root_.get()) remove(root_->newer);
}

int PrefixCache::reclaimable() const {
  int count = 0;
  for (const Node* node = root_->newer; node != root_.get(); node = node->newer) {
    count += pool_.references(node->block) == 1;
  }
  return count;
}

}  // namespace tidal
