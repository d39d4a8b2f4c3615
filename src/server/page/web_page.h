// GET /: the page for people, which is one file and asks this server's API alone.
#pragma once

#include <memory>

#include "server/http/http_server.h"

namespace tidal::server {

/// Answers with the page, which browsers let load nothing from anywhere and run no script but its own.
void web_page(const std::shared_ptr<http::Exchange>& exchange);

}  // namespace tidal::server
