#include "core/units.hpp"

#include <gtest/gtest.h>

#include "core/error.hpp"

namespace coterie {
namespace {

TEST(Units, ParsesEveryKindOfUnit) {
  EXPECT_DOUBLE_EQ(parse_seconds("2 us", "x").value, 2e-6);
  EXPECT_DOUBLE_EQ(parse_seconds("1.5ms", "x").value, 1.5e-3);
  EXPECT_EQ(parse_bytes("4 KiB", "x").value, 4096);
  EXPECT_EQ(parse_bytes("3 MB", "x").value, 3'000'000);
  EXPECT_DOUBLE_EQ(parse_bandwidth("400 Gb/s", "x").value, 50e9);  // 8 bits to the byte
  EXPECT_DOUBLE_EQ(parse_bandwidth("50 GB/s", "x").value, 50e9);
  EXPECT_DOUBLE_EQ(parse_compute_rate("989 TFLOP/s", "x").value, 989e12);
}

TEST(Units, RefusesWhatIsNotAQuantity) {
  for (const char* text : {"", "50", "GB/s", "50 GB", "-1 GB/s", "nan GB/s", "1e400 GB/s",
                           "50 gb/s", "50 GB/s/s", "0x10 GB/s"}) {
    EXPECT_THROW(parse_bandwidth(text, "key \"bandwidth\""), InputError) << text;
  }
  EXPECT_THROW(parse_bytes("99999999999 TiB", "x"), InputError);
  try {
    parse_seconds("2", "key \"latency\"");
    FAIL();
  } catch (const InputError& error) {
    EXPECT_STREQ(error.what(),
                 "key \"latency\": found \"2\", expected a time with its unit, such as \"2 us\"");
  }
}

TEST(Units, FormatsThreeSignificantDigits) {
  EXPECT_EQ(format_seconds({1.2345e-3}), "1.23 ms");
  EXPECT_EQ(format_seconds({12.345e-6}), "12.3 us");
  EXPECT_EQ(format_seconds({0.0}), "0 s");
  EXPECT_EQ(format_bytes(7392.0), "7.22 KiB");  // 7392 / 1024 = 7.21875
  EXPECT_EQ(format_bytes(512.0), "512 B");
  EXPECT_EQ(format_bandwidth({50e9}), "50 GB/s");
  EXPECT_EQ(format_compute_rate({989e12}), "989 TFLOP/s");
}

// The limits of units.cpp: beyond any machine, and such that no time of a simulation leaves double
// precision.
TEST(Units, RefusesQuantitiesThatNoMachineHas) {
  const auto refusal = [](const auto& parse) {
    try {
      parse();
    } catch (const InputError& error) {
      return std::string(error.what());
    }
    return std::string("no error");
  };
  EXPECT_EQ(refusal([] { (void)parse_bandwidth("1e-308 B/s", "F"); }),
            "F: found \"1e-308 B/s\", expected 0, or from 0.001 to 1e+18 B/s");
  EXPECT_EQ(refusal([] { (void)parse_bandwidth("1e308 TB/s", "F"); }),
            "F: found \"1e308 TB/s\", expected 0, or from 0.001 to 1e+18 B/s");
  EXPECT_EQ(refusal([] { (void)parse_seconds("1e12 s", "F"); }),
            "F: found \"1e12 s\", expected 0, or from 1e-18 to 1000000000 s");
  EXPECT_EQ(refusal([] { (void)parse_bytes("1e10 TB", "F"); }),
            "F: found \"1e10 TB\", expected 0, or from 0 to 9e+18 B");
  EXPECT_EQ(parse_bandwidth("1 B/s", "F").value, 1.0);
  EXPECT_EQ(parse_bandwidth("0 B/s", "F").value, 0.0);
}

TEST(Units, QuantitiesCombine) {
  // 1 MB over 1 GB/s takes 1 ms.
  EXPECT_DOUBLE_EQ((Bytes{1'000'000} / Bandwidth{1e9}).value, 1e-3);
  EXPECT_DOUBLE_EQ(Seconds{3.0} / Seconds{1.5}, 2.0);
}

}  // namespace
}  // namespace coterie
