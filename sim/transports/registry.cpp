#include "sim/transports/makers.hpp"

namespace coterie {

std::unique_ptr<Transport> make_transport(const Cluster& cluster, const TransportChoice& choice) {
  return std::visit([&](const auto& parameters) { return make(cluster, parameters); },
                    chosen_transport(cluster, choice));
}

}  // namespace coterie
