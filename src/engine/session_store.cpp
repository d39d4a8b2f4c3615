#include "engine/session_store.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <ctime>
#include <filesystem>
#include <system_error>
#include <utility>

#include "core/error.h"
#include "engine/taken_blocks.h"

namespace tidal {
namespace {

constexpr const char* kEnding = ".kv";

}  // namespace

int SessionStore::Found::missing_blocks(int known) const {
  int missing = 0;
  for (size_t i = static_cast<size_t>(known / kPartTokens); i < parts.size(); ++i) {
    missing += blocks_for(static_cast<int64_t>(parts[i]->tokens.size()));
  }
  return missing;
}

SessionStore::SessionStore(KvPool& pool, SessionStoreOptions options)
    : pool_(pool), options_(std::move(options)), fingerprint_(session_fingerprint(options_.model, pool)) {
  open();
}

void SessionStore::open() {
  namespace fs = std::filesystem;
  std::error_code error;
  fs::create_directories(options_.directory, error);
  if (!fs::is_directory(options_.directory)) fail("{}: is no folder, expected one for sessions", options_.directory);
  struct Seen {
    fs::file_time_type used;
    std::string path;
    int64_t bytes;
  };
  std::vector<Seen> seen;
  const std::string ours = fmt::format("{:016x}-", fingerprint_);
  for (const fs::directory_entry& entry : fs::directory_iterator(options_.directory, error)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with(ours) || !name.ends_with(kEnding) || !entry.is_regular_file(error)) continue;
    const fs::file_time_type used = entry.last_write_time(error);
    seen.push_back({used, entry.path().string(), static_cast<int64_t>(entry.file_size(error))});
  }
  if (error) fail("{}: cannot be read: {}", options_.directory, error.message());
  std::sort(seen.begin(), seen.end(), [](const Seen& a, const Seen& b) { return a.used < b.used; });
  for (const Seen& file : seen) {
    try {
      remember(file.path, read_session(file.path, fingerprint_), file.bytes);
    } catch (const Error& damaged) {
      options_.warn(fmt::format("{}; it is ignored", damaged.what()));
    }
  }
  drop_oldest();
}

SessionStore::Parts::iterator SessionStore::remember(const std::string& path, const SessionPart& part, int64_t bytes) {
  bytes_ += bytes;
  return parts_.emplace(part.parent, Part{path, part.tokens, part.clean, part.id(), bytes, ++uses_});
}

void SessionStore::touch(Part& part) {
  part.used = ++uses_;
  // For the next server; of no account when it fails. The system's own times of files are some milliseconds apart.
  timespec now = {};
  ::clock_gettime(CLOCK_REALTIME, &now);
  const timespec times[] = {now, now};
  ::utimensat(AT_FDCWD, part.path.c_str(), times, 0);
}

void SessionStore::remove(Parts::iterator part) {
  std::error_code ignored;
  std::filesystem::remove(part->second.path, ignored);
  bytes_ -= part->second.bytes;
  parts_.erase(part);
}

SessionStore::Found SessionStore::find(std::span<const Token> tokens, int most, bool clean) const {
  tokens = tokens.first(std::min(tokens.size(), static_cast<size_t>(std::max(most, 0))));
  Found found;
  for (uint64_t parent = 0; static_cast<size_t>(found.length) < tokens.size();) {
    const auto rest = tokens.subspan(found.length);
    const Part* best = nullptr;
    int most_usable = 0;
    const auto [begin, end] = parts_.equal_range(parent);
    for (auto next = begin; next != end; ++next) {
      const Part& part = next->second;
      const int common = common_prefix(part.tokens, rest);
      const int usable = clean ? std::min(common, part.clean) : common;
      if (usable > most_usable) best = &part, most_usable = usable;
    }
    if (!best) break;
    found.parts.push_back(best);
    found.length += most_usable;
    if (most_usable < kPartTokens) break;
    parent = best->id;
  }
  return found;
}

Sequence SessionStore::load(const Found& found, std::span<const Token> tokens, const Sequence& known) {
  if (const int missing = found.missing_blocks(known.length()); missing > pool_.free_blocks()) {
    fail("KV cache: a session needs {} blocks, but only {} are free", missing, pool_.free_blocks());
  }
  const size_t whole = std::min(static_cast<size_t>(known.length() / kPartTokens), found.parts.size());
  int length = static_cast<int>(whole) * kPartTokens;
  int clean = std::min(known.clean(), length);
  std::vector<BlockId> blocks(known.blocks().begin(), known.blocks().begin() + blocks_for(length));
  TakenBlocks taken(pool_);
  for (size_t i = 0; i < found.parts.size(); ++i) {
    const auto place = place_of(found.parts[i]);
    Part& part = place->second;
    if (i < whole) {
      touch(part);
      continue;
    }
    const std::span<const BlockId> own = taken.take(blocks_for(static_cast<int64_t>(part.tokens.size())));
    try {
      load_session(part.path, fingerprint_, pool_, own);
    } catch (const Error& damaged) {
      options_.warn(fmt::format("{}; it is ignored", damaged.what()));
      bytes_ -= part.bytes;
      parts_.erase(place);
      break;
    }
    touch(part);
    const int used = std::min(kPartTokens, found.length - length);
    if (clean == length) clean += std::min(used, part.clean);
    length += used;
    blocks.insert(blocks.end(), own.begin(), own.begin() + blocks_for(used));
  }
  return Sequence(pool_, 0, tokens.first(length), blocks, clean);
}

SessionStore::Parts::iterator SessionStore::place_of(const Part* part) {
  return std::find_if(parts_.begin(), parts_.end(), [&](const auto& other) { return &other.second == part; });
}

SessionStore::Parts::iterator SessionStore::exact(uint64_t parent, std::span<const Token> tokens) {
  const auto [begin, end] = parts_.equal_range(parent);
  const auto found = std::find_if(begin, end, [&](const auto& part) {
    return std::equal(part.second.tokens.begin(), part.second.tokens.end(), tokens.begin(), tokens.end());
  });
  return found == end ? parts_.end() : found;
}

bool SessionStore::has_longer(uint64_t parent, std::span<const Token> tokens, int clean) {
  const auto [begin, end] = parts_.equal_range(parent);
  return std::any_of(begin, end, [&](const auto& other) {
    const Part& part = other.second;
    return part.clean >= clean && static_cast<size_t>(common_prefix(part.tokens, tokens)) == tokens.size();
  });
}

void SessionStore::keep(const Sequence& sequence) {
  if (sequence.length() < kLeastTokens) return;
  uint64_t parent = 0;
  for (int first = 0; first < sequence.length(); first += kPartTokens) {
    const int count = std::min(kPartTokens, sequence.length() - first);
    const auto tokens = sequence.tokens().subspan(first, count);
    const int clean = std::clamp(sequence.clean() - first, 0, count);
    auto known = exact(parent, tokens);
    if (known == parts_.end() || known->second.clean < clean) {
      if (count < kPartTokens && has_longer(parent, tokens, clean)) break;
      try {
        known = write({parent, {tokens.begin(), tokens.end()}, clean},
                      sequence.blocks().subspan(first / kBlockTokens, blocks_for(count)));
      } catch (const Error& error) {
        options_.warn(fmt::format("{}; the session is not kept", error.what()));
        break;
      }
    } else {
      touch(known->second);
    }
    parent = known->second.id;
  }
  drop_oldest();
}

SessionStore::Parts::iterator SessionStore::write(const SessionPart& part, std::span<const BlockId> blocks) {
  const std::string path = fmt::format("{}/{:016x}-{:016x}{}", options_.directory, fingerprint_, part.id(), kEnding);
  const int64_t bytes = write_session(path, fingerprint_, part, pool_, blocks);
  // What it takes the place of: the same tokens with fewer clean ones, and beginnings of it.
  const auto [begin, end] = parts_.equal_range(part.parent);
  for (auto next = begin; next != end;) {
    const auto other = next++;
    const Part& old = other->second;
    if (old.path == path) {
      bytes_ -= old.bytes;
      parts_.erase(other);
    } else if (old.tokens.size() < kPartTokens && old.clean <= part.clean &&
               static_cast<size_t>(common_prefix(old.tokens, part.tokens)) == old.tokens.size()) {
      remove(other);
    }
  }
  const auto written = remember(path, part, bytes);
  touch(written->second);
  return written;
}

void SessionStore::drop_oldest() {
  while (bytes_ > options_.most_bytes) {
    // Who has children is found by way of them only.
    auto oldest = parts_.end();
    for (auto part = parts_.begin(); part != parts_.end(); ++part) {
      const bool leaf = parts_.find(part->second.id) == parts_.end();
      if (leaf && (oldest == parts_.end() || part->second.used < oldest->second.used)) oldest = part;
    }
    remove(oldest);
  }
}

}  // namespace tidal
