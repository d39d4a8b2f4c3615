// JSON as the form of an answer, held to by a grammar.
#pragma once

#include <string>

#include "server/api/tools.h"
#include "server/json.h"
#include "server/service.h"

namespace tidal::server {

/// Gives `generation` the grammar of the form that `format` asks for: {"type": text, json_object or json_schema}, the
/// schema in json_schema.schema or beside the type. null asks for none. `path` is its own. Throws ApiError for another
/// type, for what a grammar cannot enforce, and beside tools or another grammar.
void hold_to_format(const Json* format, const std::string& path, const ChatOptions& options, Generation& generation);

}  // namespace tidal::server
