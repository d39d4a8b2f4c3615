#include "engine/session_file.h"

#include <algorithm>
#include <cstring>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "core/error.h"
#include "core/whole_file.h"
#include "model/mapped_file.h"

namespace tidal {
namespace {

constexpr char kMagic[8] = {'t', 'i', 'd', 'a', 'l', 'k', 'v', '2'};
constexpr size_t kNameLength = 7;  // of kMagic; the version follows
constexpr int kMostTokens = 1 << 24;
constexpr const char* kExpected = "a session of tidal";
/// What sets fingerprints of 8-bit caches apart from those of bf16, and from those whose keys were in no units
/// (key_units_of()); another number when the rule of model/key_units.cpp becomes another.
constexpr uint64_t kOfQ8 = 0xc2b2ae3d27d4eb4f;
/// K/V begin at a page, so that they can be mapped.
constexpr size_t kPage = 4096;

/// The file: this, the tokens, the hashes [layers, K/V and sketches], and from the next page on K/V [layers, blocks],
/// then sketches [layers, blocks]. Little-endian, as all that tidal runs on.
struct Header {
  char magic[8];
  uint64_t fingerprint;
  uint64_t parent;
  int32_t tokens;
  int32_t clean;
  int32_t widths;  ///< of the sketches: the sum of their bits
  uint16_t layers;
  uint16_t type;         ///< KvType
  int64_t kv_bytes;      ///< of one block in one layer
  int64_t sketch_bytes;  ///< likewise
  uint64_t check;        ///< hash of the header before this, and of what is behind it up to the K/V
};

static_assert(sizeof(Header) == 64);

struct LayerHashes {
  uint64_t kv, sketches;
};

uint64_t check_of(const Header& header, const void* behind, size_t bytes) {
  return XXH3_64bits_withSeed(behind, bytes, XXH3_64bits(&header, offsetof(Header, check)));
}

/// Where in the file things are.
class Places {
 public:
  explicit Places(const Header& header)
      : tokens_(sizeof(Token) * static_cast<size_t>(header.tokens)),
        hashes_(sizeof(LayerHashes) * static_cast<size_t>(header.layers)),
        blocks_(static_cast<size_t>(blocks_for(header.tokens))),
        layers_(static_cast<size_t>(header.layers)),
        kv_(blocks_ * static_cast<size_t>(header.kv_bytes)),
        sketches_(blocks_ * static_cast<size_t>(header.sketch_bytes)) {}

  size_t tokens() const { return sizeof(Header); }
  size_t hashes() const { return tokens() + tokens_; }
  /// From the header's end to the K/V.
  size_t behind_header() const { return kv(0) - sizeof(Header); }
  size_t kv(size_t layer) const { return (hashes() + hashes_ + kPage - 1) / kPage * kPage + layer * kv_; }
  size_t sketches(size_t layer) const { return kv(layers_) + layer * sketches_; }
  size_t end() const { return sketches(layers_); }
  /// Bytes of a layer.
  size_t kv_bytes() const { return kv_; }
  size_t sketch_bytes() const { return sketches_; }
  size_t blocks() const { return blocks_; }
  size_t layers() const { return layers_; }

 private:
  size_t tokens_, hashes_, blocks_, layers_, kv_, sketches_;
};

/// A file whose beginning is what was written.
struct OpenFile {
  MappedFile file;
  Header header;
  std::span<const Token> tokens;
};

OpenFile open(const std::string& path, uint64_t fingerprint) {
  OpenFile open{map_file(path, kExpected), {}, {}};
  const MappedFile& file = open.file;
  Header& header = open.header;
  if (file.size < sizeof header || std::memcmp(file.data, kMagic, sizeof kMagic) != 0) {
    fail("{}: is not {}", path, kExpected);
  }
  std::memcpy(&header, file.data, sizeof header);
  if (header.fingerprint == (fingerprint ^ kOfQ8)) {
    const bool q8 = header.type == static_cast<uint16_t>(KvType::Q8);
    fail("{}: is a session in {}, but the cache is in {}: --cache-type-k and --cache-type-v of both must be the same",
         path, kv_type_name(q8 ? KvType::Q8 : KvType::Bf16), kv_type_name(q8 ? KvType::Bf16 : KvType::Q8));
  }
  if (header.fingerprint != fingerprint) fail("{}: is a session of another model or of another layout", path);
  const auto within = [](int64_t value, int64_t most) { return value >= 0 && value <= most; };
  const bool sane = header.tokens >= 1 && header.tokens <= kMostTokens && within(header.clean, header.tokens) &&
                    within(header.kv_bytes, 1 << 30) && within(header.sketch_bytes, 1 << 30);
  if (!sane) fail("{}: is damaged: its beginning is not what was written", path);
  const Places places(header);
  if (file.size != places.end()) fail("{}: has {} bytes, expected {}", path, file.size, places.end());
  if (check_of(header, file.data + places.tokens(), places.behind_header()) != header.check) {
    fail("{}: is damaged: its beginning is not what was written", path);
  }
  open.tokens = {reinterpret_cast<const Token*>(file.data + places.tokens()), static_cast<size_t>(header.tokens)};
  return open;
}

[[noreturn]] void refuse_states(const std::string& architecture) {
  fail("sessions: files for architecture '{}' are not supported, its recurrent layers have states beside K and V",
       architecture);
}

}  // namespace

bool is_session(const std::string& path) {
  const MappedFile file = map_file(path, kExpected);
  return file.size >= kNameLength && std::memcmp(file.data, kMagic, kNameLength) == 0;
}

uint64_t SessionPart::id() const { return XXH3_64bits_withSeed(tokens.data(), sizeof(Token) * tokens.size(), parent); }

void check_sessions(const Hyperparameters& hp) {
  if (hp.recurrent_layers() > 0) refuse_states(hp.architecture);
  if (hp.window_kv) {
    fail(
        "sessions: files for architecture '{}' are not supported, its layers have KV heads of different number or size",
        hp.architecture);
  }
  if (hp.shared_kv_layers > 0) {
    fail("sessions: files for architecture '{}' are not supported, some of its layers share K and V", hp.architecture);
  }
}

uint64_t session_fingerprint(uint64_t model, const KvPool& pool) {
  if (pool.states()) refuse_states(pool.states().architecture());
  if (pool.windows())
    fail(
        "sessions: files hold the K/V of whole contexts, and layers with a window keep their window only; --swa-full "
        "has them keep all");
  const KvLayer& layer = pool.layers()[0];
  for (const KvLayer& other : pool.layers()) {
    if (std::count_if(pool.layers().begin(), pool.layers().end(),
                      [&](const KvLayer& one) { return one.data == other.data; }) > 1) {
      fail("sessions: files of models whose layers share K and V are not supported");
    }
    if (other.kv_heads != layer.kv_heads || other.head_dim != layer.head_dim) {
      fail("sessions: files of models whose layers have KV heads of different number or size are not supported");
    }
  }
  const int64_t layout[] = {static_cast<int64_t>(pool.layers().size()), layer.kv_heads, layer.head_dim, kBlockTokens};
  return XXH3_64bits_withSeed(layout, sizeof layout, model) ^ (pool.type() == KvType::Q8 ? kOfQ8 : 0);
}

int64_t write_session(const std::string& path, uint64_t fingerprint, const SessionPart& part, const KvPool& pool,
                      std::span<const BlockId> blocks) {
  Header header = {};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.fingerprint = fingerprint;
  header.parent = part.parent;
  header.tokens = static_cast<int32_t>(part.tokens.size());
  header.clean = part.clean;
  header.widths = pool.sketch_widths();
  header.layers = static_cast<uint16_t>(pool.layers().size());
  header.type = static_cast<uint16_t>(pool.type());
  header.kv_bytes = static_cast<int64_t>(pool.kv_bytes(0));
  header.sketch_bytes = static_cast<int64_t>(pool.sketch_bytes(0, header.widths));
  const Places places(header);
  std::vector<std::byte> behind(places.behind_header());
  std::memcpy(behind.data(), part.tokens.data(), sizeof(Token) * part.tokens.size());

  // What a power cut may tear is found out by its hashes.
  PartFile file(path, 0600);
  file.write(&header, sizeof header);
  file.write(behind.data(), behind.size());
  std::vector<LayerHashes> hashes(places.layers());
  std::vector<std::byte> content(std::max(places.kv_bytes(), places.sketch_bytes()));
  const auto put = [&](size_t bytes) {
    file.write(content.data(), bytes);
    return XXH3_64bits(content.data(), bytes);
  };
  for (size_t layer = 0; layer < places.layers(); ++layer) {
    pool.read_kv(layer, blocks, content.data());
    hashes[layer].kv = put(places.kv_bytes());
  }
  for (size_t layer = 0; layer < places.layers(); ++layer) {
    pool.read_sketches(layer, blocks, content.data());
    hashes[layer].sketches = put(places.sketch_bytes());
  }
  std::memcpy(behind.data() + places.hashes() - sizeof header, hashes.data(), sizeof(LayerHashes) * hashes.size());
  header.check = check_of(header, behind.data(), places.behind_header());
  file.rewrite(0, &header, sizeof header);
  file.rewrite(sizeof header, behind.data(), behind.size());
  file.finish(false);
  return file.bytes();
}

SessionPart read_session(const std::string& path, uint64_t fingerprint) {
  const OpenFile open = tidal::open(path, fingerprint);
  return {.parent = open.header.parent, .tokens = {open.tokens.begin(), open.tokens.end()}, .clean = open.header.clean};
}

void load_session(const std::string& path, uint64_t fingerprint, KvPool& pool, std::span<const BlockId> blocks) {
  const OpenFile open = tidal::open(path, fingerprint);
  const Header& header = open.header;
  const std::byte* data = open.file.data;
  const Places places(header);
  if (places.layers() != pool.layers().size() || blocks.size() > places.blocks() ||
      header.kv_bytes != static_cast<int64_t>(pool.kv_bytes(0)) ||
      header.sketch_bytes != static_cast<int64_t>(pool.sketch_bytes(0, header.widths))) {
    fail("{}: is damaged: its layout is not that of the model", path);
  }
  const auto* hashes = data + places.hashes();
  int damaged = 0;
#pragma omp parallel for schedule(dynamic) reduction(+ : damaged)
  for (size_t layer = 0; layer < places.layers(); ++layer) {
    LayerHashes expected;
    std::memcpy(&expected, hashes + sizeof expected * layer, sizeof expected);
    damaged += XXH3_64bits(data + places.kv(layer), places.kv_bytes()) != expected.kv ||
               XXH3_64bits(data + places.sketches(layer), places.sketch_bytes()) != expected.sketches;
  }
  if (damaged > 0) fail("{}: is damaged: its K/V are not what was written", path);
  const size_t full = std::min(blocks.size(), open.tokens.size() / kBlockTokens);
  for (size_t layer = 0; layer < places.layers(); ++layer) {
    const size_t kv = places.kv(layer);
    pool.write_kv(layer, blocks, data + kv, open.file.descriptor, static_cast<int64_t>(kv));
    pool.write_sketches(layer, blocks, data + places.sketches(layer), header.widths, full);
  }
}

}  // namespace tidal
