// What answers read, as events of a stream say it.
#pragma once

#include "server/json.h"
#include "server/read_trace.h"

namespace tidal::server {

/// Positions that one event tells at most, the most read ones.
inline constexpr size_t kMostPositionsTold = 512;

/// {index, prompt, first, texts, reads: {position, all} or {position, sets, sinks, recent, positions: [[position,
/// sets], ...], left_out}}; `reads` only with a step. A text of several positions is [text, positions].
Json reads_json(size_t index, const Reads& reads);

}  // namespace tidal::server
