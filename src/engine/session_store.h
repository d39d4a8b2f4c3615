// K/V of texts on disk, found again by their beginning.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "engine/sequence.h"
#include "engine/session_file.h"

namespace tidal {

struct SessionStoreOptions {
  std::string directory;
  int64_t most_bytes = int64_t{20} << 30;  ///< of the files of this model; the least recently used go first
  uint64_t model = 0;                      ///< fingerprint of the model
  /// Told what was left undone or ignored, and why.
  std::function<void(const std::string&)> warn = [](const std::string&) {};
};

/// A tree of session files in one folder, each of up to kPartTokens tokens after its parent's, so that texts with a
/// common beginning share its files. Files that are torn or damaged are warned of and never served; several servers may
/// use one folder, but see each other's files only after a start. Not thread-safe.
class SessionStore {
 public:
  static constexpr int kPartTokens = 2048;
  /// A text that is shorter, or a beginning that gives fewer tokens more, is computed about as fast as it is read.
  static constexpr int kLeastTokens = 256;

  /// The pool must outlive it. Makes the folder. Throws Error when that cannot be or cannot be read.
  SessionStore(KvPool& pool, SessionStoreOptions options);

  /// One file.
  struct Part {
    std::string path;
    std::vector<Token> tokens;
    int clean = 0;
    uint64_t id = 0;
    int64_t bytes = 0;
    uint64_t used = 0;
  };
  /// What of a text is there, until the store is used again.
  struct Found {
    std::vector<const Part*> parts;  ///< of all but the last, all tokens
    int length = 0;                  ///< tokens

    /// Blocks of the pool that load() takes beside `known` tokens.
    int missing_blocks(int known) const;
  };
  /// The longest beginning of `tokens`, at most `most` of them; `clean`: only K/V that dense attention computed.
  Found find(std::span<const Token> tokens, int most, bool clean) const;
  /// `tokens` [found.length] with their K/V: those of `known`, which begins like them, as far as whole files go, the
  /// others read. Fewer tokens when a file turns out to be damaged. Throws Error unless the pool has
  /// missing_blocks(known.length()) free.
  Sequence load(const Found& found, std::span<const Token> tokens, const Sequence& known);
  /// Writes what is not there of a text. A disk that is full is warned of.
  void keep(const Sequence& sequence);

  int64_t bytes() const { return bytes_; }
  int files() const { return static_cast<int>(parts_.size()); }

 private:
  using Parts = std::multimap<uint64_t, Part>;  // by the parent's id

  void open();
  Parts::iterator remember(const std::string& path, const SessionPart& part, int64_t bytes);
  void touch(Part& part);
  void remove(Parts::iterator part);
  Parts::iterator place_of(const Part* part);
  Parts::iterator exact(uint64_t parent, std::span<const Token> tokens);
  bool has_longer(uint64_t parent, std::span<const Token> tokens, int clean);
  Parts::iterator write(const SessionPart& part, std::span<const BlockId> blocks);
  void drop_oldest();

  KvPool& pool_;
  SessionStoreOptions options_;
  uint64_t fingerprint_;
  Parts parts_;
  int64_t bytes_ = 0;
  uint64_t uses_ = 0;
};

}  // namespace tidal
