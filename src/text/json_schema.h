// From a JSON schema to the grammar of what it allows.
#pragma once

#include <string>

namespace tidal {

/// The grammar (GBNF, with a rule `root`) of the JSON that `schema` allows, by libllama-common: what it lets through
/// satisfies the schema, though of what a schema leaves open (other properties, spaces) it takes little. Throws Error
/// `at #/PATH: ...` for a keyword that a grammar cannot enforce, for one that is no JSON schema's, for references to
/// elsewhere, and in builds without the library.
std::string grammar_of_schema(const std::string& schema);

/// The grammar of any JSON object.
std::string grammar_of_json_object();

}  // namespace tidal
