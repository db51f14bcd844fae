#pragma once
// One maker per transport, told apart by the type of its parameters: the registry picks by that.

#include <memory>

#include "sim/transports/transport.hpp"

namespace coterie {

// The cluster must outlive what is returned.
std::unique_ptr<Transport> make(const Cluster& cluster, const IdealParameters& parameters);
std::unique_ptr<Transport> make(const Cluster& cluster, const NcclParameters& parameters);
std::unique_ptr<Transport> make(const Cluster& cluster, const DeepepNormalParameters& parameters);
std::unique_ptr<Transport> make(const Cluster& cluster,
                                const DeepepLowLatencyParameters& parameters);
std::unique_ptr<Transport> make(const Cluster& cluster, const NvlinkOneSidedParameters& parameters);
std::unique_ptr<Transport> make(const Cluster& cluster, const DirectParameters& parameters);

}  // namespace coterie
