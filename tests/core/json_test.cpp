// JSON within its limits. The texts are written by hand; kMaxJsonDepth is the one stated limit.

#include "core/json.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.hpp"

namespace coterie {
namespace {

using ::testing::HasSubstr;

std::string json_refusal(const std::string& text) {
  EXPECT_TRUE(try_parse_json(text).is_discarded()) << text;
  try {
    (void)parse_json(text, "F", "a document");
  } catch (const InputError& error) {
    return error.what();
  }
  return "no error";
}

TEST(Json, ReadsUpToTheStatedDepthAndNoDeeper) {
  const auto nested = [](std::size_t depth) {
    return std::string(depth, '[') + std::string(depth, ']');
  };
  EXPECT_TRUE(parse_json(nested(kMaxJsonDepth), "F").is_array());
  EXPECT_EQ(json_refusal(nested(kMaxJsonDepth + 1)),
            "F: byte 65: found lists and maps more than 64 levels inside each other, expected a "
            "document");
  // Brackets in texts are no levels, however they are quoted.
  const std::string text = "[\"" + std::string(100, '[') + "\\\"" + std::string(100, '{') + "\"]";
  EXPECT_EQ(parse_json(text, "F").size(), 1U);
  // Lists beside each other are not inside each other.
  std::string row = "[[]";
  for (int i = 0; i < 1000; ++i) row += ",[]";
  EXPECT_EQ(parse_json(row + "]", "F").size(), 1001U);
  // An unclosed text must not end the search outside of it.
  EXPECT_THAT(json_refusal("\"\\"), HasSubstr("text that is not JSON"));
}

TEST(Json, RefusesNumbersBeyondDoublePrecision) {
  for (const std::string number : {"1e999", "-1e999", "0.3448E892958014696"}) {
    EXPECT_EQ(json_refusal("[" + number + "]"),
              "F: found the number '" + number + "', expected numbers within double precision");
  }
  EXPECT_EQ(parse_json("[1e-999]", "F").at(0).get<double>(), 0.0);
}

TEST(Json, SaysWhereTextIsDamaged) {
  EXPECT_EQ(json_refusal("{\"a\": }"),
            "F: byte 7: found text that is not JSON (damaged or truncated), expected a document");
  EXPECT_THAT(json_refusal("[NaN]"),
              HasSubstr("which Python writes for a number that is not finite"));
  EXPECT_THAT(json_refusal(""), HasSubstr("F: byte 1: found text that is not JSON"));
}

TEST(Json, ExcerptsAreShortWhateverTheValueHolds) {
  EXPECT_EQ(json_excerpt(parse_json("{\"a\": [1, \"x\", null], \"b\": 2.5}", "F")),
            "{\"a\":[1,\"x\",null],\"b\":2.5}");
  EXPECT_EQ(json_excerpt(nlohmann::json(std::string(100, 'y')), 10), "\"yyyyyyyyy...");
  // Levels that the parser would refuse: a value may come from elsewhere.
  nlohmann::json deep = 1;
  for (int i = 0; i < 1000; ++i) deep = nlohmann::json::array({std::move(deep)});
  EXPECT_EQ(json_excerpt(deep, 5), "[[[[[...");
}

TEST(Json, WritesBytesThatAreNotUtf8) {
  EXPECT_EQ(dump_json(nlohmann::json("a\xff")), "\"a\xef\xbf\xbd\"");  // U+FFFD
  EXPECT_EQ(dump_json(nlohmann::ordered_json{{"b", 1}, {"a", 2}}), "{\"b\":1,\"a\":2}");
}

}  // namespace
}  // namespace coterie
