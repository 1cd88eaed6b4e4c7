# Calls actions with Net::UPnP, a control point in plain Perl that shares no code with any other.
#
# Arguments: the device to search for, the service, then for each call the name of the action, its in arguments as
# name=value, its out arguments as bare names, and "--". What comes of each is printed, a line each; arguments go out in whatever order Perl's hashes have.

use strict;
use warnings;

use Net::UPnP::ControlPoint;

$| = 1;
my ($device, $service, @words) = @ARGV;
my ($found) = Net::UPnP::ControlPoint->new()->search(st => $device, mx => 1);
die "nothing answers\n" unless $found;
my $connection = $found->getservicebyname($service) or die "no $service\n";
print "found ", $found->getlocation(), "\n";

while (@words) {
    my $action = shift @words;
    my %arguments;
    while (@words) {
        my $word = shift @words;
        last if $word eq "--";
        # Names alone are those of out arguments, which come as they come here.
        my ($name, $value) = $word =~ /^(\w+)=(.*)$/s or next;
        $arguments{$name} = $value;
    }
    my $answer = $connection->postaction($action, \%arguments);
    if ($answer->getstatuscode() == 200) {
        my $told = $answer->getargumentlist();
        print join(" ", $action, "ok", map { "$_=$told->{$_}" } sort keys %$told), "\n";
    } else {
        my ($code) = $answer->getcontent() =~ m{<errorCode>(\d+)};
        print "$action error ", $code // $answer->getstatus(), "\n";
    }
}
