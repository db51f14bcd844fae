#include "core/yaml.hpp"

#include <gtest/gtest.h>

#include "tests/message_of.hpp"

namespace coterie {
namespace {

TEST(Yaml, ReadsTypedValuesWithUnits) {
  YamlMap map = parse_yaml("a: 3\nb: 400 Gb/s\nc: [1, 2]\n", "x.yaml").as_map();
  EXPECT_EQ(map.required("a").as_integer(0, 9), 3);
  EXPECT_DOUBLE_EQ(map.required("b").as_bandwidth().value, 50e9);  // 400 / 8
  EXPECT_EQ(map.required("c").as_list().size(), 2U);
  map.finish();
}

TEST(Yaml, NamesFileLineAndColumn) {
  EXPECT_EQ(message_of([] { parse_yaml("a: 1\nbb: 7\n", "x.yaml").as_map().finish(); }),
            "x.yaml:1:1: found unknown key \"a\", expected no keys here");
  EXPECT_EQ(message_of([] { (void)parse_yaml("a: 1\na: 2\n", "x.yaml").as_map(); }),
            "x.yaml:2:1: found a second key \"a\", expected each key once");
  EXPECT_EQ(message_of([] {
              (void)parse_yaml("a:\n  b: 50\n", "x.yaml")
                  .as_map()
                  .required("a")
                  .as_map()
                  .required("b")
                  .as_bandwidth();
            }),
            "x.yaml:2:6: key \"a.b\": found \"50\", expected a bandwidth with its unit, such as "
            "\"50 GB/s\" or \"400 Gb/s\"");
}

TEST(Yaml, OverridesAreCheckedLikeTheFile) {
  const auto document = parse_yaml("a: {b: 1}\nruns: [{x: 1}]\n", "x.yaml",
                                   {parse_override("a.b=2"), parse_override("runs.0.x=5")});
  EXPECT_EQ(document.as_map().required("a").as_map().required("b").as_integer(0, 9), 2);
  EXPECT_EQ(document.as_map().required("runs").as_list()[0].as_map().required("x").as_integer(0, 9),
            5);
  EXPECT_EQ(message_of([&] {
              (void)parse_yaml("a: {b: 1}\n", "x.yaml", {parse_override("a.b=no")})
                  .as_map()
                  .required("a")
                  .as_map()
                  .required("b")
                  .as_integer(0, 9);
            }),
            "--set a.b: found \"no\", expected a whole number from 0 to 9");
}

// What a caller typed stands in the message, also where the fault is what an override added on its
// way, and of two overrides of one key the last, which is in effect.
TEST(Yaml, FaultsOfOverridesNameWhatWasGiven) {
  const auto refusal = [](const std::vector<Override>& overrides) {
    return message_of([&] {
      YamlMap map = parse_yaml("a: {b: 1}\n", "x.yaml", overrides).as_map();
      YamlMap a = map.required("a").as_map();
      (void)a.required("b").as_integer(0, 9);
      if (const auto c = map.optional("c")) (void)c->as_map().required("d");
      a.finish();
      map.finish();
    });
  };
  EXPECT_EQ(refusal({{"a.b", "no", "topology."}}),
            "--set topology.a.b: found \"no\", expected a whole number from 0 to 9");
  EXPECT_EQ(refusal({{"a", "{b: no}", "topology.", "e.yaml:4:5"}}),
            "e.yaml:4:5: key \"topology.a.b\": found \"no\", expected a whole number from 0 to 9");
  EXPECT_EQ(refusal({{"a.b", "2", "", "e.yaml:4:5"}, {"a.b", "no", "", "e.yaml:7:5"}}),
            "e.yaml:7:5: key \"a.b\": found \"no\", expected a whole number from 0 to 9");
  EXPECT_EQ(refusal({{"a.x.y", "1", "topology."}}),
            "--set topology.a.x.y: found unknown key \"x\", expected one of b");
  EXPECT_EQ(refusal({{"x", "1"}}), "--set x: found unknown key \"x\", expected one of a, c");
  EXPECT_EQ(refusal({{"c.e", "1"}}), "--set c.e: found no key \"d\", expected it to be given");
  EXPECT_EQ(
      refusal({{"a.b.c", "1", "topology."}}),
      "--set topology.a.b.c: found a plain value before \"c\", expected a path through maps and "
      "lists of the file");
  EXPECT_EQ((Override{"a", "1", "topology.", ""}), (Override{"a", "1", "", "e.yaml:4:5"}));
  EXPECT_NE((Override{"a", "1"}), (Override{"a", "2"}));
}

// Texts are read once and remembered: what one reader overrides must not reach the next. The dumps
// are what yaml-cpp writes for these documents by its own rules; an override of what aliases share
// changes it wherever it is named, as it does in yaml-cpp.
TEST(Yaml, AnOverrideStaysWithItsReader) {
  const std::string text = "a: &x {b: 1}\nc: *x\nd: [one, ~]\n";
  const std::string plain = "a: &1 {b: 1}\nc: *1\nd: [one, ~]\n";
  EXPECT_EQ(dump_yaml(parse_yaml(text, "x.yaml")), plain);
  const YamlValue changed =
      parse_yaml(text, "y.yaml", {parse_override("a.b=2"), parse_override("d.0=[3]")});
  EXPECT_EQ(dump_yaml(changed), "a: &1 {b: 2}\nc: *1\nd: [[3], ~]\n");
  EXPECT_EQ(changed.as_map().required("c").as_map().required("b").where(),
            "y.yaml:1:1: key \"c.b\"");
  EXPECT_EQ(dump_yaml(parse_yaml(text, "x.yaml")), plain);
  EXPECT_EQ(parse_yaml(text, "z.yaml").as_map().required("d").where(), "z.yaml:3:4: key \"d\"");
}

TEST(Yaml, DocumentsAreFiniteTrees) {
  const auto refusal = [](const std::string& text) {
    return message_of([&] { (void)parse_yaml(text, "x.yaml"); });
  };
  EXPECT_EQ(refusal("a: &t\n  b: {c: *t}\n"),
            "x.yaml:1:4: found an alias inside of what it names, expected a finite document");
  EXPECT_EQ(refusal("&t [1, *t]\n"),
            "x.yaml:1:1: found an alias inside of what it names, expected a finite document");
  EXPECT_EQ(message_of([] { (void)parse_yaml("a: 1\n", "x.yaml", {parse_override("a=&t [*t]")}); }),
            "--set a:1:1: found an alias inside of what it names, expected a finite document");
  // Ten times ten to the sixth.
  std::string laughs = "a: &a [x, x, x, x, x, x, x, x, x, x]\n";
  for (char c = 'b'; c < 'h'; ++c) {
    const std::string before(1, static_cast<char>(c - 1));
    laughs += std::string(1, c) + ": &" + c + " [";
    for (int i = 0; i < 10; ++i) laughs += (i > 0 ? ", *" : "*") + before;
    laughs += "]\n";
  }
  EXPECT_NE(refusal(laughs).find("more than 1000000 values once aliases are written out"),
            std::string::npos);
  // An alias beside what it names is none of these.
  EXPECT_EQ(parse_yaml("a: &t {b: 1}\nc: *t\n", "x.yaml")
                .as_map()
                .required("c")
                .as_map()
                .required("b")
                .as_integer(0, 9),
            1);
  EXPECT_NE(refusal(std::string(70, '[') + std::string(70, ']')).find("more than 64 levels"),
            std::string::npos);
}

}  // namespace
}  // namespace coterie
