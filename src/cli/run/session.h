// tidal run --session: a text that the next run need not compute again.
#pragma once

#include <optional>
#include <span>
#include <string>

#include "core/whole_file.h"
#include "engine/engine.h"
#include "engine/session_file.h"

namespace tidal {

/// One session file, as `tidal serve` has them in its folder, with the whole text in it.
class RunSession {
 public:
  /// `model`: its fingerprint. Throws Error when `path` is something else than a session or cannot be written. One that
  /// is of no use here is warned of, and replaced by keep().
  RunSession(std::string path, uint64_t model, const KvPool& pool);

  /// Tokens of the text that it has.
  std::span<const Token> tokens() const { return part_.tokens; }
  /// The longest beginning of `tokens` that is there, as far as Engine::reusable(); `clean`: only K/V that dense
  /// attention computed. nullopt when there is none.
  std::optional<Sequence> begin(Engine& engine, std::span<const Token> tokens, bool clean) const;
  /// Writes all of `sequence`. Throws Error when it cannot be written.
  void keep(const Sequence& sequence);

 private:
  WholeFile file_;
  uint64_t fingerprint_;
  SessionPart part_;
};

}  // namespace tidal
