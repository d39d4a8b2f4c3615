// K/V of a run of tokens in a file.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "engine/kv_pool.h"

namespace tidal {

/// What a session file says of itself. A text is a chain of them: each begins where its parent ends.
struct SessionPart {
  uint64_t parent = 0;  ///< id() of the part before; 0: the text begins here
  std::vector<Token> tokens;
  int clean = 0;  ///< leading tokens of them whose K/V dense attention computed

  /// Names the part together with all before it.
  uint64_t id() const;
};

/// Throws Error for models with recurrent layers, whose states files do not hold, and for those whose layers differ in
/// their KV heads or share K and V.
void check_sessions(const Hyperparameters& hp);

/// Whose K/V a file holds: the model's fingerprint, and how a block of the pool is laid out. Throws Error as
/// check_sessions(), and where layers keep their window only.
uint64_t session_fingerprint(uint64_t model, const KvPool& pool);

/// Writes `part`, whose K/V are in `blocks` [blocks_for(tokens)], and the sketches that the pool keeps of them. The
/// file is there whole or not at all. Returns its bytes. Throws Error when it cannot be written.
int64_t write_session(const std::string& path, uint64_t fingerprint, const SessionPart& part, const KvPool& pool,
                      std::span<const BlockId> blocks);

/// What the file is of, without its K/V. Throws Error for a file that is torn, none of these, or of another
/// fingerprint.
SessionPart read_session(const std::string& path, uint64_t fingerprint);

/// Whether the file is one of these, of whatever version and state. Throws Error when it cannot be read.
bool is_session(const std::string& path);

/// Has `blocks`, all blocks_for(tokens) or the first of them, hold the K/V, mapped where the backend can, and makes the
/// sketches that the pool keeps and the file has not. All is read once before, by all processors: throws Error when it
/// is not what was written.
void load_session(const std::string& path, uint64_t fingerprint, KvPool& pool, std::span<const BlockId> blocks);

}  // namespace tidal
