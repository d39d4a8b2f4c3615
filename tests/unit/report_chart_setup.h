// Looking into SVG text: whether it is well-formed, and what it shows.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <regex>
#include <string>
#include <vector>

namespace tidal::test {

/// "" when `text` is one element with properly nested elements, quoted attributes and known entities; what is wrong
/// otherwise. Knows as much XML as the charts use.
inline std::string xml_fault(const std::string& text) {
  static const std::regex kTag(R"(<(/?)([a-z]+)((?: [a-zA-Z0-9-]+="[^"<]*")*)(/?)>)");
  static const std::regex kEntity("&(amp|lt|gt|quot|#39);");
  std::string unescaped = std::regex_replace(text, kEntity, "");
  if (unescaped.find('&') != std::string::npos) return "a bare &";
  std::vector<std::string> open;
  size_t roots = 0, at = 0;
  for (std::sregex_iterator it(unescaped.begin(), unescaped.end(), kTag), end; it != end; ++it) {
    const std::string between = unescaped.substr(at, static_cast<size_t>(it->position()) - at);
    if (between.find_first_of("<>") != std::string::npos) return "no tag: " + between;
    at = static_cast<size_t>(it->position() + it->length());
    if ((*it)[1].length() > 0) {
      if (open.empty() || open.back() != (*it)[2]) return "not closed: " + it->str();
      open.pop_back();
    } else if ((*it)[4].length() == 0) {
      if (open.empty()) ++roots;
      open.push_back((*it)[2]);
    }
  }
  if (!open.empty()) return "open at the end: " + open.back();
  if (unescaped.substr(at).find_first_of("<>") != std::string::npos) return "no tag: " + unescaped.substr(at);
  return roots == 1 ? "" : "not one root";
}

/// Values of an attribute in the elements `name`, in order.
inline std::vector<std::string> attributes(const std::string& svg, const std::string& name,
                                           const std::string& attribute) {
  const std::regex pattern("<" + name + R"((?: [^<>]*)? )" + attribute + R"re(="([^"]*)")re");
  std::vector<std::string> found;
  for (std::sregex_iterator it(svg.begin(), svg.end(), pattern), end; it != end; ++it) found.push_back((*it)[1]);
  return found;
}

/// A text element.
struct DrawnText {
  double x = 0, y = 0, size = 0;
  std::string anchor, colour, text;
};

inline std::vector<DrawnText> texts(const std::string& svg) {
  static const std::regex kText(
      R"re(<text x="([^"]*)" y="([^"]*)" font-size="([^"]*)" text-anchor="([^"]*)" fill="([^"]*)"[^>]*>([^<]*)</text>)re");
  std::vector<DrawnText> found;
  for (std::sregex_iterator it(svg.begin(), svg.end(), kText), end; it != end; ++it) {
    found.push_back({std::stod((*it)[1]), std::stod((*it)[2]), std::stod((*it)[3]), (*it)[4], (*it)[5], (*it)[6]});
  }
  return found;
}

inline size_t count(const std::vector<DrawnText>& all, const std::string& text) {
  return static_cast<size_t>(
      std::count_if(all.begin(), all.end(), [&](const DrawnText& drawn) { return drawn.text == text; }));
}

/// Well-formed, titled, and without a coordinate that is no number. TIDAL_CHARTS=FOLDER keeps the picture there, for
/// eyes.
inline void expect_chart(const std::string& svg, const std::string& name) {
  EXPECT_EQ(xml_fault(svg), "") << name;
  EXPECT_EQ(svg.rfind("<svg ", 0), 0u);
  EXPECT_NE(svg.find("<title>"), std::string::npos);
  EXPECT_NE(svg.find("<desc>"), std::string::npos);
  static const std::regex kNumber(R"re( (?:x|y|x1|x2|y1|y2|cx|cy|r|width|height|points|viewBox)="([^"]*)")re");
  static const std::regex kNumbers(R"(-?[0-9]+(\.[0-9]+)?([ ,]-?[0-9]+(\.[0-9]+)?)*)");
  for (std::sregex_iterator it(svg.begin(), svg.end(), kNumber), end; it != end; ++it) {
    EXPECT_TRUE(std::regex_match((*it)[1].str(), kNumbers)) << it->str();
  }
  if (const char* folder = std::getenv("TIDAL_CHARTS")) std::ofstream(std::string(folder) + "/" + name + ".svg") << svg;
}

}  // namespace tidal::test
