#include "engine/session_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "core/error.h"

namespace tidal {
namespace {

constexpr char kMagic[8] = {'t', 'i', 'd', 'a', 'l', 'k', 'v', '1'};
constexpr int kMostTokens = 1 << 24;

/// The file: this, the tokens, the blocks. Little-endian, as all that tidal runs on.
struct Header {
  char magic[8];
  uint64_t fingerprint;
  uint64_t parent;
  int32_t tokens;
  int32_t clean;
  int32_t widths;  ///< of the sketches: the sum of their bits
  int32_t unused;
  int64_t block_bytes;
  uint64_t content;  ///< hash of the blocks
  uint64_t check;    ///< hash of the header before this, and of the tokens
};

uint64_t check_of(const Header& header, std::span<const Token> tokens) {
  return XXH3_64bits_withSeed(tokens.data(), tokens.size_bytes(), XXH3_64bits(&header, offsetof(Header, check)));
}

[[noreturn]] void fail_of(const std::string& path, const char* what) {
  fail("{}: {}: {}", path, what, std::strerror(errno));
}

class File {
 public:
  File(const std::string& path, int flags) : path_(path), file_(::open(path.c_str(), flags | O_CLOEXEC, 0600)) {
    if (file_ < 0) fail_of(path, flags & O_CREAT ? "cannot be written" : "cannot be read");
  }
  ~File() {
    if (file_ >= 0) ::close(file_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  void write(const void* data, size_t bytes) {
    const char* from = static_cast<const char*>(data);
    while (bytes > 0) {
      const ssize_t done = ::write(file_, from, bytes);
      if (done < 0 && errno == EINTR) continue;
      if (done < 0) fail_of(path_, "cannot be written");
      from += done;
      bytes -= static_cast<size_t>(done);
    }
  }
  void read(void* data, size_t bytes) {
    char* to = static_cast<char*>(data);
    while (bytes > 0) {
      const ssize_t done = ::read(file_, to, bytes);
      if (done < 0 && errno == EINTR) continue;
      if (done < 0) fail_of(path_, "cannot be read");
      if (done == 0) fail("{}: ends early, expected {} more bytes", path_, bytes);
      to += done;
      bytes -= static_cast<size_t>(done);
    }
  }
  void write_beginning(const void* data, size_t bytes) {
    if (::lseek(file_, 0, SEEK_SET) != 0) fail_of(path_, "cannot be written");
    write(data, bytes);
  }
  int64_t bytes() const {
    struct stat status = {};
    if (::fstat(file_, &status) != 0) fail_of(path_, "cannot be read");
    return status.st_size;
  }
  void close() {
    if (::close(std::exchange(file_, -1)) != 0) fail_of(path_, "cannot be written");
  }

 private:
  const std::string& path_;
  int file_;
};

/// Reads and checks all but the blocks.
Header read_beginning(File& file, const std::string& path, uint64_t fingerprint, std::vector<Token>& tokens) {
  Header header;
  file.read(&header, sizeof header);
  if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0) fail("{}: is no session of tidal", path);
  if (header.fingerprint != fingerprint) fail("{}: is a session of another model or of another layout", path);
  if (header.tokens < 1 || header.tokens > kMostTokens || header.clean < 0 || header.clean > header.tokens) {
    fail("{}: is damaged: {} tokens, {} of them clean", path, header.tokens, header.clean);
  }
  tokens.resize(header.tokens);
  file.read(tokens.data(), sizeof(Token) * tokens.size());
  if (check_of(header, tokens) != header.check) fail("{}: is damaged: its beginning is not what was written", path);
  const int64_t expected = static_cast<int64_t>(sizeof header + sizeof(Token) * tokens.size()) +
                           header.block_bytes * blocks_for(header.tokens);
  if (file.bytes() != expected) fail("{}: has {} bytes, expected {}", path, file.bytes(), expected);
  return header;
}

}  // namespace

uint64_t SessionPart::id() const { return XXH3_64bits_withSeed(tokens.data(), sizeof(Token) * tokens.size(), parent); }

uint64_t session_fingerprint(uint64_t model, const KvPool& pool) {
  const KvLayer& layer = pool.layers()[0];
  const int64_t layout[] = {static_cast<int64_t>(pool.layers().size()), layer.kv_heads, layer.head_dim, kBlockTokens};
  return XXH3_64bits_withSeed(layout, sizeof layout, model);
}

int64_t write_session(const std::string& path, uint64_t fingerprint, const SessionPart& part, KvPool& pool,
                      std::span<const BlockId> blocks) {
  Header header = {};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.fingerprint = fingerprint;
  header.parent = part.parent;
  header.tokens = static_cast<int32_t>(part.tokens.size());
  header.clean = part.clean;
  header.widths = pool.sketch_widths();
  header.block_bytes = pool.block_bytes(header.widths);
  // Beside its place, and under its name only when it is whole.
  const std::string unfinished = fmt::format("{}.{}.part", path, ::getpid());
  try {
    File file(unfinished, O_WRONLY | O_CREAT | O_TRUNC);
    file.write(&header, sizeof header);
    file.write(part.tokens.data(), sizeof(Token) * part.tokens.size());
    std::vector<std::byte> content(static_cast<size_t>(header.block_bytes));
    XXH3_state_t hash;
    XXH3_64bits_reset(&hash);
    for (const BlockId block : blocks) {
      pool.save(block, content.data());
      XXH3_64bits_update(&hash, content.data(), content.size());
      file.write(content.data(), content.size());
    }
    header.content = XXH3_64bits_digest(&hash);
    header.check = check_of(header, part.tokens);
    file.write_beginning(&header, sizeof header);
    const int64_t bytes = file.bytes();
    file.close();
    if (std::rename(unfinished.c_str(), path.c_str()) != 0) fail_of(path, "cannot be written");
    return bytes;
  } catch (...) {
    ::unlink(unfinished.c_str());
    throw;
  }
}

SessionPart read_session(const std::string& path, uint64_t fingerprint) {
  File file(path, O_RDONLY);
  SessionPart part;
  const Header header = read_beginning(file, path, fingerprint, part.tokens);
  part.parent = header.parent;
  part.clean = header.clean;
  return part;
}

void load_session(const std::string& path, uint64_t fingerprint, KvPool& pool, std::span<const BlockId> blocks) {
  File file(path, O_RDONLY);
  std::vector<Token> tokens;
  const Header header = read_beginning(file, path, fingerprint, tokens);
  if (header.block_bytes != pool.block_bytes(header.widths) ||
      blocks.size() != static_cast<size_t>(blocks_for(header.tokens))) {
    fail("{}: is damaged: {} bytes a block, expected {}", path, header.block_bytes, pool.block_bytes(header.widths));
  }
  std::vector<std::byte> content(static_cast<size_t>(header.block_bytes));
  XXH3_state_t hash;
  XXH3_64bits_reset(&hash);
  for (size_t b = 0; b < blocks.size(); ++b) {
    file.read(content.data(), content.size());
    XXH3_64bits_update(&hash, content.data(), content.size());
    const bool full = (b + 1) * kBlockTokens <= tokens.size();
    pool.load(blocks[b], content.data(), header.widths, full);
  }
  if (XXH3_64bits_digest(&hash) != header.content) fail("{}: is damaged: its K/V are not what was written", path);
}

}  // namespace tidal
