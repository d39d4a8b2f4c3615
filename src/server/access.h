// Who may ask the server.
#pragma once

#include <string>
#include <vector>

#include "server/http/http_server.h"

namespace tidal::server {

/// Throws ApiError 401 unless the request has one of `keys` (Authorization: Bearer, or x-api-key). Takes the same time
/// for every wrong key of one length.
void check_key(const http::Request& request, const std::vector<std::string>& keys);

/// Throws ApiError 403 for requests that a web page of another site makes: by an Origin that is neither this server's
/// own nor among `allowed`, and, where the server listens on a loopback address, by a Host that names another one (a
/// name of the attacker's that resolves to 127.0.0.1).
void check_site(const http::Request& request, const std::string& listening, const std::vector<std::string>& allowed);

/// Where the request's Origin is among `allowed`, what lets its page read the answer (CORS); empty otherwise. Where the
/// request only asks whether another may be made (a preflight), what that one may have, too.
http::Headers page_headers(const http::Request& request, const std::vector<std::string>& allowed);
bool is_preflight(const http::Request& request);

}  // namespace tidal::server
