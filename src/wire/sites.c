// Two network namespaces and a third for the relay between them, each site joined to it by a pair of virtual interfaces. None has a
// name: the kernel takes all of it away when the last descriptor and the last thread in it are gone.
#include "wire/wire.h"

#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <net/if.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

struct gang_sites {
    int home, middle, site[2]; // namespaces
    struct gang_relay *relay;
};

enum { MESSAGE_BYTES = 512 };
static const char *const hosts[2] = {"10.77.0.1", "10.77.0.2"}, *const ports[2] = {"site0", "site1"}, inside[] = "link0";

// ---- A pair of virtual interfaces, by rtnetlink ------------------------------------------------------------------------

struct message {
    struct nlmsghdr header;
    struct ifinfomsg link;
    uint8_t rest[MESSAGE_BYTES];
};

static struct rtattr *append(struct message *m, int type, const void *data, size_t bytes) {
    struct rtattr *attribute = (struct rtattr *)((uint8_t *)m + NLMSG_ALIGN(m->header.nlmsg_len));
    assert(NLMSG_ALIGN(m->header.nlmsg_len) + RTA_SPACE(bytes) <= sizeof *m);
    *attribute = (struct rtattr){.rta_len = (unsigned short)RTA_LENGTH(bytes), .rta_type = (unsigned short)type};
    if (data) memcpy(RTA_DATA(attribute), data, bytes);
    m->header.nlmsg_len = NLMSG_ALIGN(m->header.nlmsg_len) + (uint32_t)RTA_SPACE(bytes);
    return attribute;
}

static void end_nest(struct message *m, struct rtattr *outer) {
    outer->rta_len = (unsigned short)((uint8_t *)m + m->header.nlmsg_len - (uint8_t *)outer);
}

// `name` here, its other end `peer` in the namespace `there`.
static enum gang_status add_pair(const char *name, const char *peer, int there) {
    struct message m = {.header = {.nlmsg_len = NLMSG_LENGTH(sizeof m.link), .nlmsg_type = RTM_NEWLINK}};
    m.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    append(&m, IFLA_IFNAME, name, strlen(name) + 1);
    struct rtattr *info = append(&m, IFLA_LINKINFO, NULL, 0);
    append(&m, IFLA_INFO_KIND, "veth", strlen("veth"));
    struct rtattr *data = append(&m, IFLA_INFO_DATA, NULL, 0), *other = append(&m, VETH_INFO_PEER, &(struct ifinfomsg){0}, sizeof(struct ifinfomsg));
    append(&m, IFLA_IFNAME, peer, strlen(peer) + 1);
    append(&m, IFLA_NET_NS_FD, &there, sizeof there);
    end_nest(&m, other);
    end_nest(&m, data);
    end_nest(&m, info);
    struct {
        struct nlmsghdr header;
        struct nlmsgerr error;
        uint8_t rest[MESSAGE_BYTES];
    } answer = {.error.error = -EPROTO};
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    bool good = fd >= 0 && send(fd, &m, m.header.nlmsg_len, 0) == (ssize_t)m.header.nlmsg_len && recv(fd, &answer, sizeof answer, 0) > 0;
    int why = good ? -answer.error.error : errno;
    if (fd >= 0) close(fd);
    errno = why;
    return why ? gang_fail_os("sites: cannot make a pair of virtual interfaces (CONFIG_VETH in the kernel)") : GANG_OK;
}

// Gives the interface of the calling thread's namespace an address, unless NULL, and turns it on.
static enum gang_status turn_on(const char *name, const char *host) {
    struct ifreq request = {0};
    struct sockaddr_in address = {.sin_family = AF_INET}, mask = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0xffffff00)};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    bool good = fd >= 0;
    memcpy(request.ifr_name, name, strlen(name));
    if (host) {
        inet_pton(AF_INET, host, &address.sin_addr);
        memcpy(&request.ifr_addr, &address, sizeof address);
        good = good && !ioctl(fd, SIOCSIFADDR, &request);
        memcpy(&request.ifr_netmask, &mask, sizeof mask);
        good = good && !ioctl(fd, SIOCSIFNETMASK, &request);
    }
    request.ifr_flags = IFF_UP | IFF_RUNNING;
    good = good && !ioctl(fd, SIOCSIFFLAGS, &request);
    int why = errno;
    if (fd >= 0) close(fd);
    errno = why;
    return good ? GANG_OK : gang_fail_os("sites: cannot set up interface %s", name);
}

// ---- Namespaces ----------------------------------------------------------------------------------------------------

static enum gang_status own_namespace(int *fd) {
    *fd = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
    return *fd >= 0 ? GANG_OK : gang_fail_os("sites: cannot open /proc/thread-self/ns/net");
}

// The calling thread is in it then.
static enum gang_status new_namespace(int *fd) {
    if (unshare(CLONE_NEWNET))
        return errno == EPERM ? gang_fail(GANG_ERR_INPUT, "sites: network namespaces need root: start it with sudo")
                              : gang_fail_os("sites: cannot make a network namespace (CONFIG_NET_NS in the kernel)");
    enum gang_status status = own_namespace(fd);
    return status ? status : turn_on("lo", NULL);
}

static enum gang_status enter(int fd) { return setns(fd, CLONE_NEWNET) ? gang_fail_os("sites: cannot enter a network namespace") : GANG_OK; }

static enum gang_status build(struct gang_sites *sites, const struct gang_relay_options *options) {
    struct gang_relay_options relay_options = *options;
    enum gang_status status = new_namespace(&sites->middle);
    for (int i = 0; i < 2 && !status; i++) {
        status = new_namespace(&sites->site[i]);
        if (!status) status = add_pair(inside, ports[i], sites->middle);
        if (!status) status = turn_on(inside, hosts[i]);
        relay_options.between[i] = ports[i];
    }
    if (!status) status = enter(sites->middle);
    for (int i = 0; i < 2 && !status; i++) status = turn_on(ports[i], NULL);
    return status ? status : gang_relay_open(&relay_options, &sites->relay);
}

enum gang_status gang_sites_open(const struct gang_relay_options *options, struct gang_sites **out) {
    struct gang_sites *sites = calloc(1, sizeof *sites);
    assert(sites && "out of memory");
    *sites = (struct gang_sites){-1, -1, {-1, -1}, NULL};
    *out = NULL;
    enum gang_status status = own_namespace(&sites->home);
    if (!status) {
        status = build(sites, options);
        if (setns(sites->home, CLONE_NEWNET) && !status) status = gang_fail_os("sites: cannot go back to the own network namespace");
    }
    if (status)
        gang_sites_close(sites);
    else
        *out = sites;
    return status;
}

enum gang_status gang_sites_enter(const struct gang_sites *sites, int site) { return enter(site < 0 ? sites->home : sites->site[site]); }

const char *gang_sites_host(int site) { return hosts[site]; }

struct gang_relay *gang_sites_relay(const struct gang_sites *sites) {
    return sites->relay;
}

void gang_sites_close(struct gang_sites *sites) {
    if (!sites) return;
    gang_relay_close(sites->relay);
    const int all[] = {sites->home, sites->middle, sites->site[0], sites->site[1]};
    for (int i = 0; i < 4; i++)
        if (all[i] >= 0) close(all[i]);
    free(sites);
}
