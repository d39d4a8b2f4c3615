#include "cli/run/session.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "cli/console/output.h"
#include "core/error.h"
#include "engine/taken_blocks.h"

namespace tidal {
namespace {

void warn_of(const Error& error) {
  warn(fmt::format("{}; it is ignored, and replaced when this run ends", error.what()));
}

}  // namespace

RunSession::RunSession(std::string path, uint64_t model, const KvPool& pool)
    : file_(std::move(path)), fingerprint_(session_fingerprint(model, pool)) {
  std::error_code ignored;
  if (std::filesystem::file_size(file_.path(), ignored) == 0 || ignored) return;  // to be made
  if (!is_session(file_.path())) fail("{}: is not a session of tidal, and would be overwritten", file_.path());
  try {
    part_ = read_session(file_.path(), fingerprint_);
    if (part_.parent != 0) fail("{}: is the continuation of another file, expected a whole text", file_.path());
  } catch (const Error& error) {
    part_ = {};
    warn_of(error);
  }
}

std::optional<Sequence> RunSession::begin(Engine& engine, std::span<const Token> tokens, bool clean) const {
  int length = std::min(common_prefix(part_.tokens, tokens), engine.reusable(static_cast<int>(tokens.size())));
  if (clean) length = std::min(length, part_.clean);
  if (length <= 0) return std::nullopt;
  KvPool& pool = engine.pool();
  TakenBlocks taken(pool);
  const std::span<const BlockId> blocks = taken.take(blocks_for(length));
  try {
    load_session(file_.path(), fingerprint_, pool, blocks);
    return Sequence(pool, engine.options().context, tokens.first(static_cast<size_t>(length)), blocks,
                    std::min(part_.clean, length));
  } catch (const Error& error) {
    warn_of(error);
    return std::nullopt;
  }
}

void RunSession::keep(const Sequence& sequence) {
  if (sequence.length() == 0) return;
  const SessionPart part{0, {sequence.tokens().begin(), sequence.tokens().end()}, sequence.clean()};
  write_session(file_.path(), fingerprint_, part, sequence.pool(),
                sequence.blocks().first(static_cast<size_t>(blocks_for(sequence.length()))));
}

}  // namespace tidal
